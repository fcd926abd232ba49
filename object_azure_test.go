//go:build !no_azure

package main

import "testing"

func TestAzureResumes(t *testing.T) {
	f := startFakeStore(t)
	f.azure = true
	t.Setenv(azureConnection, "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=a2V5;BlobEndpoint="+f.URL+"/a")
	b, err := newAzureBucket(azureConfig{Container: "builds", PartSize: 8 << 20, Concurrency: 2}, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	testResuming(t, f, b)
}
