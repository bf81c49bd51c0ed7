package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestImage(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	img := image{
		ref: "docker.io/dormouse/test:1", files: map[string]string{"usr/bin/hello": program},
		links: map[string]string{"bin/hi": "/usr/bin/hello"}, entrypoint: []string{"/usr/bin/hello"}, user: "1:2", port: "80/tcp",
	}
	first, second := filepath.Join(dir, "1.tar.zst"), filepath.Join(dir, "2.tar.zst")
	for _, f := range []string{first, second} {
		if err := img.write(f); err != nil {
			t.Fatal(err)
		}
	}
	a, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("built twice, the archives differ")
	}

	plain := filepath.Join(dir, "3.tar")
	if err := img.write(plain); err != nil {
		t.Fatal(err)
	}
	back, err := tarball.ImageFromPath(plain, nil)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := back.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if cf.OS != "linux" || cf.Config.User != "1:2" || !slices.Equal(cf.Config.Entrypoint, img.entrypoint) {
		t.Errorf("configuration %+v", cf)
	}
}

func TestLayer(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	layer, err := image{files: map[string]string{"usr/bin/hello": program}, links: map[string]string{"bin/hi": "/usr/bin/hello"}}.layer()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		got = append(got, h.Name)
	}
	want := []string{"bin/", "dev/", "etc/", "proc/", "sys/", "tmp/", "usr/", "usr/bin/", "bin/hi", "usr/bin/hello"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
