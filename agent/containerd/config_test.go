package containerd

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"

	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/version"
)

var update = flag.Bool("update", false, "write the golden files anew")

var sample = Config{
	Root:        "/var/lib/dormouse/agent/containerd",
	StateDir:    "/run/dormouse/containerd",
	File:        "/var/lib/dormouse/agent/etc/containerd/config.toml",
	BinDir:      "/var/lib/dormouse/agent/bin",
	CNIConfig:   "/var/lib/dormouse/agent/etc/cni/net.d",
	PauseImage:  "docker.io/dormouse/pause:1",
	Snapshotter: "overlayfs",
}

func TestConfigGolden(t *testing.T) {
	got, err := sample.render()
	if err != nil {
		t.Fatal(err)
	}
	golden := "testdata/config.toml"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("configuration differs from %s (-update writes it anew):\n%s", golden, got)
	}
}

// containerd ignores what it does not know, so ask it what it has understood.
func TestConfigLoads(t *testing.T) {
	cfg := sample
	dir := t.TempDir()
	cfg.StateDir, cfg.CNIConfig = filepath.Join(dir, "run"), filepath.Join(dir, "cni")
	cfg.File = filepath.Join(dir, "etc", `odd "name" \ of a file.toml`)
	cfg.Root = dir + `/root "quoted"`
	if err := cfg.write(); err != nil {
		t.Fatal(err)
	}
	config := &srvconfig.Config{Version: version.ConfigVersion, Plugins: map[string]any{}}
	if err := srvconfig.LoadConfigWithPlugins(context.Background(), cfg.File, nil, config); err != nil {
		t.Fatal(err)
	}
	if config.Root != cfg.Root {
		t.Errorf("root is %q, want %q", config.Root, cfg.Root)
	}
	grpc, ok := config.Plugins["io.containerd.server.v1.grpc"].(map[string]any)
	if !ok || grpc["address"] != cfg.Socket() {
		t.Errorf("grpc server is %v, want address %q", config.Plugins["io.containerd.server.v1.grpc"], cfg.Socket())
	}
}
