//go:build !no_azure

package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	azservice "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
)

// azureKeyLife is for how much longer than a URL a user delegation key is requested.
const azureKeyLife = 24 * time.Hour

// azureSigner signs URLs of an azureBucket with the key of the account, or with a cached
// user delegation key, which Azure issues to an identity.
type azureSigner struct {
	key *azservice.SharedKeyCredential // nil: the credentials are an identity, or a SAS

	mu            sync.Mutex
	delegationKey *azservice.UserDelegationCredential // nil: none was requested yet
	expires       time.Time                           // of delegationKey
}

// presign implements bucket with a shared access signature. An identity needs the role
// Storage Blob Delegator.
func (b *azureBucket) presign(ctx context.Context, key string, ttl time.Duration, filename string) (string, error) {
	values := sas.BlobSignatureValues{
		ExpiryTime: time.Now().UTC().Add(ttl), Permissions: (&sas.BlobPermissions{Read: true}).String(),
		ContainerName: b.conf.Container, BlobName: key, ContentDisposition: `attachment; filename="` + filename + `"`,
	}
	var query sas.QueryParameters
	var err error
	switch {
	case b.signer.key != nil:
		query, err = values.SignWithSharedKey(b.signer.key)
	case b.conf.AccountURL == "":
		return "", fmt.Errorf("%w: cannot sign URLs: %s has no AccountKey", ErrUnsupported, azureConnection)
	default:
		var key *azservice.UserDelegationCredential
		if key, err = b.signer.userDelegationKey(ctx, b.service, ttl); err == nil {
			query, err = values.SignWithUserDelegation(key)
		}
	}
	if err != nil {
		return "", err
	}
	return b.client.NewBlobClient(key).URL() + "?" + query.Encode(), nil
}

// userDelegationKey returns a key that is valid for ttl at least: the cached one, or a new
// one.
func (s *azureSigner) userDelegationKey(ctx context.Context, service *azservice.Client, ttl time.Duration) (*azservice.UserDelegationCredential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().UTC()
	if s.delegationKey != nil && now.Add(ttl).Before(s.expires) {
		return s.delegationKey, nil
	}
	expires := now.Add(ttl + azureKeyLife)
	key, err := service.GetUserDelegationCredential(ctx, azservice.KeyInfo{
		Start: to.Ptr(now.Add(-maxSkew).Format(sas.TimeFormat)), Expiry: to.Ptr(expires.Format(sas.TimeFormat)),
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot get a user delegation key to sign URLs: %w", needs("generateUserDelegationKey", azureError(err)))
	}
	s.delegationKey, s.expires = key, expires
	return key, nil
}

// connectionKey returns the account key in a connection string, or nil if it has none.
func connectionKey(connection string) (*azservice.SharedKeyCredential, error) {
	var name, key string
	for field := range strings.SplitSeq(connection, ";") {
		switch n, value, _ := strings.Cut(field, "="); n {
		case "AccountName":
			name = value
		case "AccountKey":
			key = value
		}
	}
	if name == "" || key == "" {
		return nil, nil
	}
	return azservice.NewSharedKeyCredential(name, key)
}
