// Command images builds the container images that the tests and the demo need,
// as archives for <data-dir>/agent/images. No registry and no daemon is used.
//
//	go run ./packaging/images -o build/images
//
//	pause.tar.gz    docker.io/dormouse/pause:1    the pod sandbox
//	web.tar.zst     docker.io/dormouse/web:v1     a web server answering with its pod's name
//	web-v2.tar.zst  docker.io/dormouse/web:v2     the same, calling itself v2
//	busybox.tar     docker.io/dormouse/busybox:1  Debian's busybox-static
//
// Built twice from the same sources and tools, an archive has the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
)

// image is one image of one layer and the archive it is written to.
type image struct {
	archive    string
	ref        string
	files      map[string]string // path in the image: file to take
	links      map[string]string // path in the image: target of the symbolic link
	entrypoint []string
	cmd        []string
	env        []string
	user       string
	port       string
}

func main() {
	out := flag.String("o", "build/images", "directory to write the archives to")
	busybox := flag.String("busybox", "/bin/busybox", "static busybox to use; Debian's package busybox-static has it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := build(ctx, *out, *busybox); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, out, busybox string) error {
	tmp, err := os.MkdirTemp("", "images-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}

	pause, web := filepath.Join(tmp, "pause"), filepath.Join(tmp, "web")
	if err := run(ctx, nil, "gcc", "-Os", "-Wall", "-Wextra", "-Werror", "-static", "-nostdlib", "-ffreestanding",
		"-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-s",
		"-o", pause, "packaging/images/pause/pause.c"); err != nil {
		return err
	}
	if err := run(ctx, []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", web, "./packaging/images/web"); err != nil {
		return err
	}
	applets, err := appletLinks(ctx, busybox)
	if err != nil {
		return err
	}

	webImage := func(version, archive string) image {
		return image{
			archive: archive, ref: "docker.io/dormouse/web:" + version,
			files: map[string]string{"web": web}, entrypoint: []string{"/web"},
			env: []string{"VERSION=" + version}, user: "65534:65534", port: "8080/tcp",
		}
	}
	for _, img := range []image{
		{archive: "pause.tar.gz", ref: "docker.io/dormouse/pause:1", files: map[string]string{"pause": pause}, entrypoint: []string{"/pause"}, user: "65535:65535"},
		webImage("v1", "web.tar.zst"),
		webImage("v2", "web-v2.tar.zst"),
		{archive: "busybox.tar", ref: "docker.io/dormouse/busybox:1", files: map[string]string{"bin/busybox": busybox}, links: applets, cmd: []string{"sh"}},
	} {
		if err := img.write(filepath.Join(out, img.archive)); err != nil {
			return fmt.Errorf("write image %s: %w", img.ref, err)
		}
	}
	return nil
}

func run(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, b)
	}
	return nil
}

// appletLinks asks busybox where its commands want to be.
func appletLinks(ctx context.Context, busybox string) (map[string]string, error) {
	b, err := exec.CommandContext(ctx, busybox, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("list the applets of %s (install busybox-static?): %w", busybox, err)
	}
	links := map[string]string{}
	for applet := range strings.FieldsSeq(string(b)) {
		if path.Base(applet) != "busybox" {
			links[applet] = "/bin/busybox"
		}
	}
	return links, nil
}

// write builds the image and writes its archive, compressed as the name says.
func (m image) write(file string) error {
	ref, err := name.NewTag(m.ref)
	if err != nil {
		return err
	}
	layerTar, err := m.layer()
	if err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layerTar)), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cf = cf.DeepCopy()
	cf.Architecture, cf.OS = runtime.GOARCH, "linux"
	cf.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	cf.Config.Entrypoint, cf.Config.Cmd, cf.Config.User = m.entrypoint, m.cmd, m.user
	cf.Config.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, m.env...)
	if m.port != "" {
		cf.Config.ExposedPorts = map[string]struct{}{m.port: {}}
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return err
	}

	var buf bytes.Buffer
	w, err := compress(&buf, file)
	if err != nil {
		return err
	}
	if err := tarball.Write(ref, img, w); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	// Renamed into place: a node may be watching the directory.
	if err := os.WriteFile(file+".tmp", buf.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}

// layer is the image's only layer, entries in the order of their names.
func (m image) layer() ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	epoch := time.Unix(0, 0)

	dirs := map[string]bool{"tmp": true, "etc": true, "proc": true, "sys": true, "dev": true}
	var names []string
	for n := range m.files {
		names = append(names, n)
	}
	for n := range m.links {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		for d := path.Dir(n); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	var dirNames []string
	for d := range dirs {
		dirNames = append(dirNames, d)
	}
	slices.Sort(dirNames)
	for _, d := range dirNames {
		mode := int64(0o755)
		if d == "tmp" {
			mode = 0o1777
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: mode, ModTime: epoch}); err != nil {
			return nil, err
		}
	}
	for _, n := range names {
		if target, ok := m.links[n]; ok {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: n, Linkname: target, Mode: 0o777, ModTime: epoch}); err != nil {
				return nil, err
			}
			continue
		}
		b, err := os.ReadFile(m.files[n])
		if err != nil {
			return nil, err
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: n, Mode: 0o755, Size: int64(len(b)), ModTime: epoch}); err != nil {
			return nil, err
		}
		if _, err := tw.Write(b); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func compress(w io.Writer, file string) (io.WriteCloser, error) {
	switch {
	case strings.HasSuffix(file, ".zst"):
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	case strings.HasSuffix(file, ".gz"):
		return gzip.NewWriter(w), nil
	default:
		return nopCloser{w}, nil
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
