package main

// tlsConfig is the TLS of the API. The admin address and the profiler have none.
type tlsConfig struct {
	Cert       string `env:"CERT" help:"PEM file of the certificate, with its intermediates; the API then speaks TLS only; read again when its content changes; empty means no TLS"`
	Key        string `env:"KEY" help:"PEM file of the private key of the certificate"`
	ClientCA   string `env:"CLIENT_CA" help:"PEM file of the CAs whose client certificates are accepted; empty means that clients are not asked for certificates"`
	ClientAuth string `env:"CLIENT_AUTH" help:"optional or require: whether clients must have a certificate; require needs PAGEWRIGHT_ADMIN_LISTEN for the probes; empty means optional with PAGEWRIGHT_TLS_CLIENT_CA"`
	Min        string `env:"MIN" envDefault:"1.2" help:"oldest version of TLS that is accepted: 1.2 or 1.3"`
}

// The values of PAGEWRIGHT_TLS_CLIENT_AUTH.
const (
	clientAuthOptional = "optional"
	clientAuthRequire  = "require"
)

// on reports whether the API speaks TLS.
func (c *tlsConfig) on() bool { return c.Cert != "" }

// requires reports whether clients must have a certificate.
func (c *tlsConfig) requires() bool { return c.ClientAuth == clientAuthRequire }

// checkTLS refuses settings that would leave the API with less than they ask for.
func (c *Config) checkTLS() error {
	bad := func(name, value, why string) error {
		return badConfig("%sTLS_%s=%s: %s", envPrefix, name, value, why)
	}
	t := &c.TLS
	switch {
	case t.Cert != "" && t.Key == "":
		return badConfig("%sTLS_KEY must be set because %sTLS_CERT is set", envPrefix, envPrefix)
	case t.Key != "" && t.Cert == "":
		return badConfig("%sTLS_CERT must be set because %sTLS_KEY is set", envPrefix, envPrefix)
	case t.Min != "1.2" && t.Min != "1.3":
		return bad("MIN", t.Min, "must be 1.2 or 1.3")
	case t.ClientAuth != "" && t.ClientAuth != clientAuthOptional && t.ClientAuth != clientAuthRequire:
		return bad("CLIENT_AUTH", t.ClientAuth, "must be optional or require")
	case t.Cert == "" && t.ClientCA != "":
		return bad("CLIENT_CA", t.ClientCA, "requires PAGEWRIGHT_TLS_CERT and PAGEWRIGHT_TLS_KEY")
	case t.ClientCA == "" && t.ClientAuth != "":
		return bad("CLIENT_AUTH", t.ClientAuth, "requires PAGEWRIGHT_TLS_CLIENT_CA: the CAs whose certificates are accepted")
	case t.Cert == "" && t.Min != "1.2":
		return bad("MIN", t.Min, "requires PAGEWRIGHT_TLS_CERT and PAGEWRIGHT_TLS_KEY")
	case t.requires() && c.AdminListen == "":
		return bad("CLIENT_AUTH", t.ClientAuth, "requires PAGEWRIGHT_ADMIN_LISTEN: probes have no certificate")
	}
	return nil
}

// tlsAttrs returns the settings of TLS for the service log.
func (c *Config) tlsAttrs() []any {
	attrs := []any{"tls", c.TLS.on()}
	switch {
	case c.TLS.requires():
		return append(attrs, "tls_client_auth", clientAuthRequire)
	case c.TLS.ClientCA != "":
		return append(attrs, "tls_client_auth", clientAuthOptional)
	}
	return attrs
}
