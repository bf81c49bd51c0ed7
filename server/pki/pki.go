// Package pki makes and keeps a cluster's certificates: three certificate authorities, the keys and
// certificates of the control plane, and the key that signs service account tokens.
//
// All keys are ECDSA P-256. Authorities last ten years; every other certificate lasts a year and is issued
// anew, with a new key, when less than ninety days of it are left, when it no longer says what it should,
// or when it was not signed by the present authority. Nothing is ever half written: a key goes to disk
// before its certificate, and a pair that does not match is replaced.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"github.com/dormouse-k8s/dormouse/internal/paths"
)

const (
	authorityYears = 10
	leafValidity   = 365 * 24 * time.Hour
	// RenewBefore is how much of a certificate must be left at a start for it to stay.
	RenewBefore = 90 * 24 * time.Hour
	// backdate makes a certificate valid for machines whose clock is behind ours.
	backdate = 24 * time.Hour
)

// Authority is a certificate authority kept in NAME.crt and NAME.key.
type Authority struct {
	// Cert is the authority's certificate.
	Cert *x509.Certificate
	// PEM is the content of NAME.crt, the bundle that clients pin.
	PEM []byte

	key crypto.Signer
	now time.Time
}

// Leaf describes a certificate that an Authority issues.
type Leaf struct {
	CommonName   string
	Organization []string
	DNSNames     []string
	IPs          []net.IP
	Usage        x509.ExtKeyUsage
}

// LoadAuthority reads the authority name from dir, or creates it if it has no certificate yet. A
// certificate without its key, or one that cannot be read, is an error: everything that was ever issued
// depends on it.
func LoadAuthority(dir, name string, now time.Time) (*Authority, error) {
	certFile, keyFile := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	bundle, err := os.ReadFile(certFile)
	if errors.Is(err, fs.ErrNotExist) {
		return createAuthority(certFile, keyFile, name, now)
	} else if err != nil {
		return nil, fmt.Errorf("reading the certificate authority: %w", err)
	}
	certs, err := certutil.ParseCertsPEM(bundle)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s is damaged, restore it from a backup: %w", certFile, err)
	}
	key, err := readKey(keyFile)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s has no usable key, restore it from a backup: %w", certFile, err)
	}
	if !samePublicKey(certs[0].PublicKey, key.Public()) {
		return nil, fmt.Errorf("certificate authority %s and %s do not belong together, restore both from a backup", certFile, keyFile)
	}
	return &Authority{Cert: certs[0], PEM: bundle, key: key, now: now}, nil
}

func createAuthority(certFile, keyFile, name string, now time.Time) (*Authority, error) {
	key, err := writeKey(keyFile)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: fmt.Sprintf("dormouse-%s@%d", name, now.Unix())},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.AddDate(authorityYears, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("creating certificate authority %s: %w", name, err)
	}
	a := &Authority{Cert: cert, PEM: encode(cert), key: key, now: now}
	return a, paths.Write(certFile, a.PEM, paths.ModePublicFile)
}

// Ensure sees to it that certFile and keyFile hold a valid pair that says what leaf says. certFile gets
// mode 0644, keyFile 0600.
func (a *Authority) Ensure(certFile, keyFile string, leaf Leaf) error {
	if a.reasonToIssue(certFile, keyFile, leaf) == "" {
		return nil
	}
	key, err := writeKey(keyFile)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: leaf.CommonName, Organization: leaf.Organization},
		DNSNames:    leaf.DNSNames,
		IPAddresses: leaf.IPs,
		NotBefore:   a.now.Add(-backdate),
		NotAfter:    a.now.Add(leafValidity),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{leaf.Usage},
	}
	cert, err := sign(template, a.Cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("issuing %s: %w", certFile, err)
	}
	return paths.Write(certFile, encode(cert), paths.ModePublicFile)
}

// reasonToIssue says why the pair on disk cannot stay, or "".
func (a *Authority) reasonToIssue(certFile, keyFile string, leaf Leaf) string {
	bundle, err := os.ReadFile(certFile)
	if err != nil {
		return "there is none"
	}
	certs, err := certutil.ParseCertsPEM(bundle)
	if err != nil {
		return "it is damaged"
	}
	cert := certs[0]
	key, err := readKey(keyFile)
	switch {
	case err != nil || !samePublicKey(cert.PublicKey, key.Public()):
		return "its key is missing or another"
	case cert.CheckSignatureFrom(a.Cert) != nil:
		return "another authority signed it"
	case a.now.Add(RenewBefore).After(cert.NotAfter):
		return "it expires soon"
	case a.now.Before(cert.NotBefore):
		return "it is not valid yet"
	case cert.Subject.CommonName != leaf.CommonName || !slices.Equal(cert.Subject.Organization, leaf.Organization),
		!slices.Equal(cert.DNSNames, leaf.DNSNames) || !slices.EqualFunc(cert.IPAddresses, leaf.IPs, net.IP.Equal),
		!slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{leaf.Usage}):
		return "it says something else"
	}
	return ""
}

// EnsureKey sees to it that file holds a private key. A damaged one is an error: what it has signed
// would be worth nothing.
func EnsureKey(file string) error {
	_, err := readKey(file)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = writeKey(file)
	}
	return err
}

// Hash is the SHA-256 of a certificate bundle in hexadecimal, as it appears in tokens.
func Hash(bundle []byte) string { return fmt.Sprintf("%x", sha256.Sum256(bundle)) }

func readKey(file string) (crypto.Signer, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading a private key: %w", err)
	}
	key, err := keyutil.ParsePrivateKeyPEM(b)
	if err != nil {
		return nil, fmt.Errorf("private key %s is damaged, restore it from a backup: %w", file, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("private key %s is of a kind that cannot sign (%T)", file, key)
	}
	return signer, nil
}

func writeKey(file string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating a private key for %s: %w", file, err)
	}
	b, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a private key for %s: %w", file, err)
	}
	return key, paths.Write(file, b, paths.ModePrivateFile)
}

func sign(template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	// A nil serial number in the template makes x509 choose a random one.
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func encode(cert *x509.Certificate) []byte {
	b, err := certutil.EncodeCertificates(cert)
	if err != nil {
		panic(err) // only a writer that fails makes it fail, and it writes to memory
	}
	return b
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
