// Package overlay holds every difference between upstream's source and what
// guests are compiled from, and prepares the flags with which go build applies
// them. There is no fork: a difference is one line in [Patches], a list of what is
// left of a file in [Trims] or left out of one in [Omissions], or one small file or package in [Additions] or
// [Packages]; and the build fails when upstream no longer matches.
//
// go build refuses to overlay files in the module cache. Each module with a
// difference is therefore reached through a symbolic link, by a replace
// directive in a copy of go.mod, and the overlay names files below that link. Files
// of Go's standard library can be named where they are.
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
	for _, t := range Trims {
		sources[t.Module] = ""
	}
	for _, x := range Omissions {
		sources[x.Module] = ""
	}
	for _, a := range Additions {
		sources[a.Module] = ""
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
		if module == std {
			continue // go build overlays its files where they are
		}
		link := filepath.Join(out, "src", module)
		if err := symlink(source, link); err != nil {
			return nil, err
		}
		replacement := link
		if rel, err := filepath.Rel(root, link); err == nil && filepath.IsLocal(rel) {
			replacement = "./" + filepath.ToSlash(rel) // it becomes part of the program, which must be the same anywhere
		}
		if _, err := goTool(ctx, root, "mod", "edit", "-replace="+module+"="+replacement, modfile); err != nil {
			return nil, err
		}
	}

	o := overlay{root: root, out: out, sources: sources, changed: map[[2]string][]byte{}, replace: map[string]string{}}
	if err := o.apply(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(map[string]any{"Replace": o.replace}, "", "\t")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(out, "overlay.json")
	if err := writeIfChanged(file, b); err != nil {
		return nil, err
	}
	return []string{"-modfile=" + modfile, "-overlay=" + file}, nil
}

// overlay is what Prepare makes.
type overlay struct {
	root, out string
	sources   map[string]string    // module path to its directory
	changed   map[[2]string][]byte // module and file to its text
	replace   map[string]string    // for go build: file below out/src to what stands in its place, "" if it is gone
}

func (o *overlay) apply() error {
	for _, p := range Patches {
		text, err := o.read(p.Module, p.File)
		if err != nil {
			return err
		}
		if o.changed[[2]string{p.Module, p.File}], err = p.apply(text); err != nil {
			return err
		}
	}
	for _, t := range Trims {
		text, err := o.read(t.Module, t.File)
		if err != nil {
			return err
		}
		if o.changed[[2]string{t.Module, t.File}], err = t.apply(text); err != nil {
			return fmt.Errorf("trimming %s/%s: %w; upstream has changed, look at what is kept again", t.Module, t.File, err)
		}
		for _, name := range t.Drop {
			if err := o.drop(t.Module, filepath.Join(filepath.Dir(t.File), name)); err != nil {
				return err
			}
		}
	}
	for _, x := range Omissions {
		text, err := o.read(x.Module, x.File)
		if err != nil {
			return err
		}
		if o.changed[[2]string{x.Module, x.File}], err = x.apply(text); err != nil {
			return fmt.Errorf("leaving packages out of %s/%s: %w; upstream has changed, look at what is left out again", x.Module, x.File, err)
		}
	}
	for key, text := range o.changed {
		to := filepath.Join(o.out, "changed", key[0], key[1])
		if err := writeIfChanged(to, text); err != nil {
			return err
		}
		o.replace[o.path(key[0], key[1])] = to
	}
	for _, a := range Additions {
		if _, err := os.Stat(filepath.Join(o.sources[a.Module], a.File)); err == nil {
			return fmt.Errorf("adding %s/%s: upstream has such a file", a.Module, a.File)
		}
		o.replace[o.path(a.Module, a.File)] = filepath.Join(o.root, dir, a.Module, a.File)
	}
	for _, p := range Packages {
		if err := o.replacePackage(p); err != nil {
			return err
		}
	}
	return nil
}

// path is where go build sees a file.
func (o *overlay) path(module, file string) string {
	if module == std {
		return filepath.Join(o.sources[std], file)
	}
	return filepath.Join(o.out, "src", module, file)
}

// read returns a file as it is so far.
func (o *overlay) read(module, file string) ([]byte, error) {
	if text, ok := o.changed[[2]string{module, file}]; ok {
		return text, nil
	}
	text, err := os.ReadFile(filepath.Join(o.sources[module], file))
	if err != nil {
		return nil, fmt.Errorf("changing %s: %w", module, err)
	}
	return text, nil
}

func (o *overlay) drop(module, file string) error {
	if _, err := os.Stat(filepath.Join(o.sources[module], file)); err != nil {
		return fmt.Errorf("dropping a file of %s: %w", module, err)
	}
	o.replace[o.path(module, file)] = ""
	return nil
}

// apply returns the patched text.
func (p Patch) apply(text []byte) ([]byte, error) {
	if n := bytes.Count(text, []byte(p.Old)); n != 1 {
		return nil, fmt.Errorf("patching %s/%s: %q occurs %d times, want once; upstream has changed, look at the patch again", p.Module, p.File, p.Old, n)
	}
	return bytes.Replace(text, []byte(p.Old), []byte(p.New), 1), nil
}

// replacePackage puts our files in place of upstream's.
func (o *overlay) replacePackage(p Package) error {
	upstream, err := filepath.Glob(filepath.Join(o.sources[p.Module], p.Dir, "*.go"))
	if err != nil {
		return err
	}
	if len(upstream) == 0 {
		return fmt.Errorf("replacing %s/%s: upstream has no such package", p.Module, p.Dir)
	}
	for _, f := range upstream {
		o.replace[o.path(p.Module, filepath.Join(p.Dir, filepath.Base(f)))] = ""
	}
	ours, err := filepath.Glob(filepath.Join(o.root, dir, p.Module, p.Dir, "*.go"))
	if err != nil {
		return err
	}
	if len(ours) == 0 {
		return fmt.Errorf("replacing %s/%s: no files in %s", p.Module, p.Dir, dir)
	}
	for _, f := range ours {
		o.replace[o.path(p.Module, filepath.Join(p.Dir, filepath.Base(f)))] = f
	}
	return nil
}

// moduleDir returns where the source of a module lies, downloading it if needed.
func moduleDir(ctx context.Context, root, module string) (string, error) {
	if module == std {
		goroot, err := goTool(ctx, root, "env", "GOROOT")
		return filepath.Join(strings.TrimSpace(string(goroot)), "src"), err
	}
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
