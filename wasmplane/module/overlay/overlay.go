// Package overlay holds every difference between upstream's source and what
// guests are compiled from, and prepares the flags with which go build applies
// them. There is no fork: a difference is one line in [Patches] or one small
// package in [Packages], and the build fails when upstream no longer matches.
//
// go build refuses to overlay files in the module cache. Each module with a
// difference is therefore reached through a symbolic link, by a replace
// directive in a copy of go.mod, and the overlay names files below that link.
package overlay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Patch replaces one piece of text in one file of upstream.
type Patch struct {
	Module string // module path
	File   string // path of the file in the module
	Old    string // must occur exactly once
	New    string
	Reason string
}

// Patches are all the patches, in no particular order.
var Patches = []Patch{
	{
		Module: "k8s.io/client-go",
		File:   "util/workqueue/delaying_queue.go",
		Old:    "const maxWait = 10 * time.Second",
		New:    "const maxWait = 100 * 365 * 24 * time.Hour",
		Reason: "A heartbeat against lost timers. It would wake every sleeping guest each 10 seconds, " +
			"and no timer gets lost: the plane keeps the guest's clock and its next timer.",
	},
}

// Package replaces a whole package of upstream by the files of the directory
// of the same path below this one.
type Package struct {
	Module string // module path
	Dir    string // path of the package in the module
	Reason string
}

// Packages are all the replaced packages.
var Packages = []Package{
	{
		Module: "k8s.io/kubernetes",
		Dir:    "pkg/kubelet/eviction",
		Reason: "The pod garbage collector takes one function of three lines from it; the rest adds 550 packages, " +
			"some of which do not compile for WASI.",
	},
}

// Forbidden are packages that must not become part of a guest, with the reason.
var Forbidden = map[string]string{
	"k8s.io/component-base/metrics/prometheus/workqueue": "it makes every work queue update its metrics twice a second, asleep or not",
}

// Check fails if one of packages, import paths, is forbidden.
func Check(packages []string) error {
	for _, p := range packages {
		if reason, ok := Forbidden[p]; ok {
			return fmt.Errorf("a guest must not import %s: %s", p, reason)
		}
	}
	return nil
}

// dir is where this package lies in the repository.
const dir = "wasmplane/module/overlay"

// Prepare writes what go build needs into out, a directory of its own, and
// returns the flags to pass. root is the root of the repository.
func Prepare(ctx context.Context, root, out string) ([]string, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	out, err = filepath.Abs(out)
	if err != nil {
		return nil, err
	}
	sources := map[string]string{} // module path to its directory in the module cache
	for _, p := range Patches {
		sources[p.Module] = ""
	}
	for _, p := range Packages {
		sources[p.Module] = ""
	}
	modfile := filepath.Join(out, "go.mod")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return nil, err
		}
		if err := writeIfChanged(filepath.Join(out, name), b); err != nil {
			return nil, err
		}
	}
	for module := range sources {
		source, err := moduleDir(ctx, root, module)
		if err != nil {
			return nil, err
		}
		sources[module] = source
		link := filepath.Join(out, "src", module)
		if err := symlink(source, link); err != nil {
			return nil, err
		}
		if _, err := goTool(ctx, root, "mod", "edit", "-replace="+module+"="+link, modfile); err != nil {
			return nil, err
		}
	}

	replace := map[string]string{}
	for _, p := range Patches {
		patched, err := p.apply(sources[p.Module])
		if err != nil {
			return nil, err
		}
		to := filepath.Join(out, "patched", p.Module, p.File)
		if err := writeIfChanged(to, patched); err != nil {
			return nil, err
		}
		replace[filepath.Join(out, "src", p.Module, p.File)] = to
	}
	for _, p := range Packages {
		if err := p.overlay(replace, sources[p.Module], filepath.Join(out, "src", p.Module), root); err != nil {
			return nil, err
		}
	}
	b, err := json.MarshalIndent(map[string]any{"Replace": replace}, "", "\t")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(out, "overlay.json")
	if err := writeIfChanged(file, b); err != nil {
		return nil, err
	}
	return []string{"-modfile=" + modfile, "-overlay=" + file}, nil
}

// apply returns the patched file.
func (p Patch) apply(source string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(source, p.File))
	if err != nil {
		return nil, fmt.Errorf("patching %s: %w", p.Module, err)
	}
	if n := bytes.Count(b, []byte(p.Old)); n != 1 {
		return nil, fmt.Errorf("patching %s/%s: %q occurs %d times, want once; upstream has changed, look at the patch again", p.Module, p.File, p.Old, n)
	}
	return bytes.Replace(b, []byte(p.Old), []byte(p.New), 1), nil
}

// overlay adds to replace what puts our files in place of upstream's.
func (p Package) overlay(replace map[string]string, source, link, root string) error {
	upstream, err := filepath.Glob(filepath.Join(source, p.Dir, "*.go"))
	if err != nil {
		return err
	}
	if len(upstream) == 0 {
		return fmt.Errorf("replacing %s/%s: upstream has no such package", p.Module, p.Dir)
	}
	for _, f := range upstream {
		replace[filepath.Join(link, p.Dir, filepath.Base(f))] = "" // deleted
	}
	ours, err := filepath.Glob(filepath.Join(root, dir, p.Module, p.Dir, "*.go"))
	if err != nil {
		return err
	}
	if len(ours) == 0 {
		return fmt.Errorf("replacing %s/%s: no files in %s", p.Module, p.Dir, dir)
	}
	for _, f := range ours {
		replace[filepath.Join(link, p.Dir, filepath.Base(f))] = f
	}
	return nil
}

// moduleDir returns where the source of a module lies, downloading it if needed.
func moduleDir(ctx context.Context, root, module string) (string, error) {
	b, err := goTool(ctx, root, "mod", "download", "-json", module)
	if err != nil {
		return "", err
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(b, &m); err != nil {
		return "", fmt.Errorf("reading the answer of go mod download: %w", err)
	}
	if m.Dir == "" {
		return "", fmt.Errorf("go mod download names no directory for %s", module)
	}
	return m.Dir, nil
}

func goTool(ctx context.Context, root string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return b, nil
}

func symlink(target, link string) error {
	if have, err := os.Readlink(link); err == nil && have == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, link)
}

// writeIfChanged leaves the file's time alone when nothing changed.
func writeIfChanged(name string, b []byte) error {
	if have, err := os.ReadFile(name); err == nil && bytes.Equal(have, b) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, b, 0o644)
}
