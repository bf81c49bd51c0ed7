package pki

import (
	"bytes"
	"crypto/x509"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certutil "k8s.io/client-go/util/cert"

	"github.com/dormouse-k8s/dormouse/internal/paths"
)

var (
	now   = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	names = ClusterNames{ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), Domain: "cluster.local", SANs: []string{"example.org", "192.0.2.7", "example.org"}}
)

func ensure(d paths.Data, names ClusterNames, now time.Time) (*Cluster, error) {
	c, err := LoadCluster(d, now)
	if err != nil {
		return nil, err
	}
	return c, c.EnsureServer(names)
}

func newCluster(t *testing.T) (paths.Data, *Cluster) {
	t.Helper()
	d := paths.Data(t.TempDir())
	c, err := ensure(d, names, now)
	if err != nil {
		t.Fatal(err)
	}
	return d, c
}

func readCert(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := certutil.ParseCertsPEM(b)
	if err != nil {
		t.Fatal(err)
	}
	return certs[0]
}

// snapshot returns the content of every file under dir.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestClusterCertificates(t *testing.T) {
	d, c := newCluster(t)
	pool := x509.NewCertPool()
	pool.AddCert(c.Server.Cert)
	serving := readCert(t, d.TLS(APIServer+".crt"))
	for _, name := range []string{"kubernetes.default.svc.cluster.local", "localhost", "10.43.0.1", "127.0.0.1", "::1", "192.0.2.7", "example.org"} {
		if _, err := serving.Verify(x509.VerifyOptions{DNSName: name, Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	clients := x509.NewCertPool()
	clients.AddCert(c.Client.Cert)
	admin := readCert(t, d.TLS(Admin+".crt"))
	if _, err := admin.Verify(x509.VerifyOptions{Roots: clients, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if _, err := admin.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("the authority for servers vouches for a client")
	}
	if got := c.Server.Cert.NotAfter.Sub(now); got < 3650*24*time.Hour {
		t.Errorf("authority lasts %s", got)
	}
	if got := serving.NotAfter.Sub(now); got != 365*24*time.Hour {
		t.Errorf("certificate lasts %s", got)
	}
}

func TestModes(t *testing.T) {
	d, c := newCluster(t)
	if err := c.EnsureNode("n1", []net.IP{net.ParseIP("192.0.2.8")}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{d.TLS(), d.Agent()} {
		for name := range snapshot(t, dir) {
			st, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			want := fs.FileMode(0o600)
			if strings.HasSuffix(name, ".crt") {
				want = 0o644
			}
			if st.Mode() != want {
				t.Errorf("%s has mode %v, want %v", name, st.Mode(), want)
			}
		}
	}
	if st, err := os.Stat(d.TLS()); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestSecondStartChangesNothing(t *testing.T) {
	d, _ := newCluster(t)
	before := snapshot(t, d.TLS())
	if _, err := ensure(d, names, now.Add(200*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	for name, content := range snapshot(t, d.TLS()) {
		if before[name] != content {
			t.Errorf("%s changed", name)
		}
	}
}

func TestLeafIsIssuedAnew(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, d paths.Data)
		names ClusterNames
		now   time.Time
	}{
		"expires within 90 days": {names: names, now: now.Add(276 * 24 * time.Hour)},
		"expired":                {names: names, now: now.Add(3 * 365 * 24 * time.Hour)},
		"clock went back":        {names: names, now: now.Add(-100 * 24 * time.Hour)},
		"another SAN":            {names: ClusterNames{ServiceCIDR: names.ServiceCIDR, Domain: "cluster.local", SANs: []string{"example.net"}}, now: now},
		"cut short": {names: names, now: now, spoil: func(t *testing.T, d paths.Data) {
			if err := os.Truncate(d.TLS(APIServer+".crt"), 40); err != nil {
				t.Fatal(err)
			}
		}},
		"key is gone": {names: names, now: now, spoil: func(t *testing.T, d paths.Data) {
			if err := os.Remove(d.TLS(APIServer + ".key")); err != nil {
				t.Fatal(err)
			}
		}},
		"key of another": {names: names, now: now, spoil: func(t *testing.T, d paths.Data) {
			if err := os.Rename(d.TLS(Kubelet+".key"), d.TLS(APIServer+".key")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := newCluster(t)
			before := snapshot(t, d.TLS())
			if tc.spoil != nil {
				tc.spoil(t, d)
			}
			if _, err := ensure(d, tc.names, tc.now); err != nil {
				t.Fatal(err)
			}
			after := snapshot(t, d.TLS())
			if before[APIServer+".crt"] == after[APIServer+".crt"] {
				t.Error("the certificate stayed")
			}
			for _, ca := range []string{ServerCA, ClientCA, RequestHeaderCA} {
				if before[ca+".crt"] != after[ca+".crt"] || before[ca+".key"] != after[ca+".key"] {
					t.Errorf("%s changed", ca)
				}
			}
			key, err := readKey(d.TLS(APIServer + ".key"))
			if err != nil || !samePublicKey(readCert(t, d.TLS(APIServer+".crt")).PublicKey, key.Public()) {
				t.Errorf("key and certificate do not match (%v)", err)
			}
		})
	}
}

func TestDamagedAuthorityIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(d paths.Data) error{
		"certificate cut short": func(d paths.Data) error { return os.Truncate(d.TLS(ServerCA+".crt"), 30) },
		"key is gone":           func(d paths.Data) error { return os.Remove(d.TLS(ServerCA + ".key")) },
		"key of another":        func(d paths.Data) error { return os.Rename(d.TLS(ClientCA+".key"), d.TLS(ServerCA+".key")) },
		"service key damaged":   func(d paths.Data) error { return os.WriteFile(d.TLS(ServiceKey), []byte("x"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := newCluster(t)
			if err := spoil(d); err != nil {
				t.Fatal(err)
			}
			before := snapshot(t, d.TLS())
			if _, err := ensure(d, names, now); err == nil || !strings.Contains(err.Error(), "backup") {
				t.Fatalf("got %v", err)
			}
			if after := snapshot(t, d.TLS()); len(after) != len(before) || after[ServerCA+".crt"] != before[ServerCA+".crt"] {
				t.Error("something was written")
			}
		})
	}
}

func TestInterruptedFirstStart(t *testing.T) {
	// The power went away after the authority's key and before its certificate.
	d, _ := newCluster(t)
	if err := os.Remove(d.TLS(ServerCA + ".crt")); err != nil {
		t.Fatal(err)
	}
	c, err := ensure(d, names, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := readCert(t, d.TLS(APIServer+".crt")).CheckSignatureFrom(c.Server.Cert); err != nil {
		t.Errorf("the certificate is of an authority that no longer exists: %v", err)
	}
	b, err := os.ReadFile(d.TLS(ServerCA + ".crt"))
	if err != nil || !bytes.Equal(b, c.Server.PEM) {
		t.Error("the bundle in memory is not the one on disk")
	}
}
