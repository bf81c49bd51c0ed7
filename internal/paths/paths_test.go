package paths

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// The names are promises: scripts, units and backups of users contain them.
func TestNames(t *testing.T) {
	d := Data(DataDir)
	for got, want := range map[string]string{
		ConfigFile:               "/etc/dormouse/config.yaml",
		Kubeconfig:               "/etc/dormouse/dormouse.yaml",
		RunDir:                   "/run/dormouse",
		d.Server():               "/var/lib/dormouse/server",
		d.Token():                "/var/lib/dormouse/server/token",
		d.NodeToken():            "/var/lib/dormouse/server/node-token",
		d.TLS():                  "/var/lib/dormouse/server/tls",
		d.TLS("server-ca.crt"):   "/var/lib/dormouse/server/tls/server-ca.crt",
		d.Database():             "/var/lib/dormouse/server/db/state.db",
		d.Manifests():            "/var/lib/dormouse/server/manifests",
		d.WasmSnapshots():        "/var/lib/dormouse/server/wasm/snapshots.db",
		d.Agent("images"):        "/var/lib/dormouse/agent/images",
		d.Agent("pod-manifests"): "/var/lib/dormouse/agent/pod-manifests",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	for got, want := range map[fs.FileMode]fs.FileMode{
		ModePrivateDir: 0o700, ModePublicDir: 0o755, ModePrivateFile: 0o600, ModePublicFile: 0o644,
	} {
		if got != want {
			t.Errorf("got %o, want %o", got, want)
		}
	}
}

func TestWriteReplacesAndSetsMode(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	for _, step := range []struct {
		data string
		mode fs.FileMode
	}{{"one", 0o644}, {"two", 0o600}, {"two", 0o640}} {
		if err := Write(name, []byte(step.data), step.mode); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil || string(got) != step.data {
			t.Fatalf("got %q, %v", got, err)
		}
		st, err := os.Stat(name)
		if err != nil || st.Mode() != step.mode {
			t.Fatalf("got mode %v, %v, want %v", st.Mode(), err, step.mode)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(name))
	if err != nil || len(entries) != 1 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
}

func TestWriteOfSameContentLeavesTheFileAlone(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := Write(name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := Write(name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(name)
	if err != nil || !os.SameFile(before, after) {
		t.Fatalf("the file was written again (%v)", err)
	}
}

func TestMakeDirSetsMode(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a", "b")
	if err := MakeDir(name, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := MakeDir(name, ModePrivateDir); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(name)
	if err != nil || st.Mode().Perm() != ModePrivateDir {
		t.Fatalf("got %v, %v", st.Mode(), err)
	}
}
