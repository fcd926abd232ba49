//go:build integration && !no_s3

package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// policyOfTheDocs returns the policy in docs/object-stores.md as a bucket policy.
func policyOfTheDocs(t *testing.T, without string) string {
	t.Helper()
	docs, err := os.ReadFile("docs/object-stores.md")
	if err != nil {
		t.Fatal(err)
	}
	_, policy, _ := strings.Cut(string(docs), "```json\n")
	policy, _, _ = strings.Cut(policy, "```")
	var p struct {
		Version   string
		Statement []struct {
			Effect, Principal string
			Action            []string
			Resource          string
		}
	}
	if err := json.Unmarshal([]byte(strings.ReplaceAll(policy, "BUCKET", testBucket)), &p); err != nil || len(p.Statement) != 2 {
		t.Fatal(err, policy)
	}
	for i := range p.Statement {
		s := &p.Statement[i]
		s.Principal = "limited"
		if s.Action = slices.DeleteFunc(s.Action, func(a string) bool { return a == without }); len(s.Action) == 0 {
			s.Action = []string{"s3:PutObjectTagging"} // is of no use here
			s.Resource = strings.TrimSuffix(s.Resource, "/*") + "/*"
		}
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The permissions in docs/object-stores.md suffice for everything that the service does, and doctor
// names a missing one.
func TestPolicyOfTheDocs(t *testing.T) {
	server := startProcess(t, "/health", []string{"ROOT_ACCESS_KEY=" + testKey, "ROOT_SECRET_KEY=" + testSecret},
		[]string{versityPath, "--port", "{addr}", "--health", "/health", "--quiet", "--iam-dir", t.TempDir(), "posix", t.TempDir()})
	root := s3Store(t, "versitygw", server)
	out, err := exec.Command(versityPath, "admin", "--access", testKey, "--secret", testSecret, "--endpoint-url", server.url(),
		"create-user", "--access", "limited", "--secret", testSecret, "--role", "user").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	client := root.s3(t).client
	allow := func(without string) {
		t.Helper()
		if _, err := client.PutBucketPolicy(context.Background(), &s3.PutBucketPolicyInput{
			Bucket: aws.String(testBucket), Policy: aws.String(policyOfTheDocs(t, without)),
		}); err != nil {
			t.Fatal(err)
		}
	}
	limited := root.with(map[string]string{"AWS_ACCESS_KEY_ID": "limited"})
	allow("")
	limited.setenv(t)
	if out, err := runDoctor(limited.environ("")...); err != nil {
		t.Errorf("doctor says %v:\n%s", err, out)
	}
	testBackend(t, func(t *testing.T) Backend { return limited.open(t, "") }, deletesGone)
	for _, action := range []string{"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"} {
		allow(action)
		out, err := runDoctor(limited.environ("")...)
		if err == nil || !strings.Contains(out, "FAIL") || !strings.Contains(out, "required permission: "+action) {
			t.Errorf("without %s doctor says %v:\n%s", action, err, out)
		}
	}
}
