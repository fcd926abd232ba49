package main

// maxAccessFile is the maximum size of an access file in bytes.
const maxAccessFile = 1 << 20

// The access file as it is written; access_file_check.go makes an accessPolicy of it.
type (
	accessFile struct {
		Tokens       []fileToken       `json:"tokens"`
		OIDC         []fileIssuer      `json:"oidc"`
		Certificates []fileCertificate `json:"certificates"`
		Anonymous    []fileGrant       `json:"anonymous"`
	}
	fileGrant struct {
		Allow []string `json:"allow"`
		Sites []string `json:"sites"`
	}
	fileToken struct {
		Name      string   `json:"name"`
		SHA256    []string `json:"sha256"` // one hash, or two while a token is replaced
		fileGrant          // allow, sites
		Expires   *string  `json:"expires"`
	}
	fileIssuer struct {
		Name        string     `json:"name"`
		Issuer      string     `json:"issuer"`
		Audience    []string   `json:"audience"`
		JWKSURL     string     `json:"jwks_url"`
		CAFile      string     `json:"ca_file"`
		TokenFile   string     `json:"token_file"`
		Algorithms  []string   `json:"algorithms"`
		MaxLifetime *string    `json:"max_lifetime"`
		Rules       []fileRule `json:"rules"`
	}
	fileRule struct {
		Claims    map[string][]string `json:"claims"` // globs
		fileGrant                     // allow, sites
		Shared    bool                `json:"shared"`
	}
	fileCertificate struct {
		Name      string   `json:"name"`
		SAN       []string `json:"san"`
		fileGrant          // allow, sites
		Shared    bool     `json:"shared"`
	}
)

// parseAccessFile returns the policy of an access file. It accepts nothing that could be a
// mistake. The error begins with the place, as tokens[0].sha256[1], and for a file that is not
// JSON with line and column. It may be shown to anyone who may read the service log: it contains
// no whole token or password. Tokens that have expired are accepted, so that their holders get that
// as the reason; so nothing depends on the time.
func parseAccessFile(data []byte) (*accessPolicy, error) {
	var file accessFile
	if err := parseJSONFile(data, maxAccessFile, &file); err != nil {
		return nil, err
	}
	return file.policy()
}
