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

// azureKeyLife is the time for which a key to sign URLs with is asked for.
const azureKeyLife = 24 * time.Hour

// azureSigner is what URLs of an azureBucket are signed with: the key of the
// account, or one that the service lends to an identity.
type azureSigner struct {
	key *azservice.SharedKeyCredential // nil: the service is known by an identity, or by a SAS

	mu    sync.Mutex
	lent  *azservice.UserDelegationCredential
	until time.Time // the end of lent
}

// presign implements bucket by a shared access signature. An identity must be a
// Storage Blob Delegator for that.
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
		return "", fmt.Errorf("%w: %s has no AccountKey to sign with", ErrUnsupported, azureConnection)
	default:
		var lent *azservice.UserDelegationCredential
		if lent, err = b.signer.borrow(ctx, b.service, ttl); err == nil {
			query, err = values.SignWithUserDelegation(lent)
		}
	}
	if err != nil {
		return "", err
	}
	return b.client.NewBlobClient(key).URL() + "?" + query.Encode(), nil
}

// borrow gets a key that is good for ttl at least.
func (s *azureSigner) borrow(ctx context.Context, service *azservice.Client, ttl time.Duration) (*azservice.UserDelegationCredential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().UTC()
	if s.lent != nil && now.Add(ttl).Before(s.until) {
		return s.lent, nil
	}
	until := now.Add(ttl + azureKeyLife)
	lent, err := service.GetUserDelegationCredential(ctx, azservice.KeyInfo{
		Start: to.Ptr(now.Add(-maxSkew).Format(sas.TimeFormat)), Expiry: to.Ptr(until.Format(sas.TimeFormat)),
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("no key to sign with: %w", needs("generateUserDelegationKey", azureError(err)))
	}
	s.lent, s.until = lent, until
	return lent, nil
}

// connectionKey is the key in a connection string, nil if there is none.
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
