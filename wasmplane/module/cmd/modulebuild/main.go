// Command modulebuild makes the module of the control plane from source: it
// compiles the guest program, bakes its base image, compiles that to machine
// code, and writes the file that package module loads. Run it in the root of the
// repository:
//
//	go run ./wasmplane/module/cmd/modulebuild -o build/controllers.cwasm
//
// What takes long is cached by content.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/module"
	"github.com/dormouse-k8s/dormouse/wasmplane/module/bake"
	"github.com/dormouse-k8s/dormouse/wasmplane/module/overlay"
)

// recipe is part of the cache key: change it when the same guest program would
// give another file.
const recipe = 2

// tags leave out what no guest needs: traces of gRPC bring html/template along,
// with which the linker cannot leave out any method.
const tags = "-tags=grpcnotrace"

// experiments has the garbage collector keep its marks apart from the objects. Go's
// newer one keeps them beside, so that each collection would give a guest a copy of
// its own of nearly every page of the heap.
const experiments = "GOEXPERIMENT=nogreenteagc"

// kept is how many files stay in the cache.
const kept = 3

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := doMain(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "modulebuild:", err)
		os.Exit(1)
	}
}

func doMain(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("modulebuild", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("o", "build/controllers.cwasm", "`file` to write")
	program := flags.String("guest", "./wasmplane/controllers/guest", "guest program to compile, a `package`")
	work := flags.String("work", "build/guest", "`directory` for intermediate files")
	cache := flags.String("cache", "", "`directory` of compiled modules (default: dormouse/modules in the user's cache directory)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			dir = "build/cache"
		}
		*cache = filepath.Join(dir, "dormouse", "modules")
	}

	b := builder{stderr: stderr, started: time.Now()}
	wasm, err := b.compileGuest(ctx, *program, *work)
	if err != nil {
		return err
	}
	target, err := module.Target()
	if err != nil {
		return err
	}
	key := digest(wasm, fmt.Sprint(recipe), module.WasmtimeVersion, target, fmt.Sprint(module.FormatVersion))
	cached := filepath.Join(*cache, key+".cwasm")
	if _, err := module.Verify(cached); err == nil {
		b.step("taken from the cache")
	} else {
		if err := os.MkdirAll(*cache, 0o755); err != nil {
			return err
		}
		if err := b.makeModule(ctx, wasm, cached); err != nil {
			return err
		}
		if err := prune(*cache); err != nil {
			return err
		}
	}
	return copyFile(cached, *out)
}

// builder tells how far it is.
type builder struct {
	stderr  io.Writer
	started time.Time
}

func (b *builder) step(format string, args ...any) {
	fmt.Fprintf(b.stderr, "modulebuild: %6.1fs %s\n", time.Since(b.started).Seconds(), fmt.Sprintf(format, args...))
}

// compileGuest runs go build with upstream's source as package overlay changes
// it, and returns the program.
func (b *builder) compileGuest(ctx context.Context, program, work string) ([]byte, error) {
	flags, err := overlay.Prepare(ctx, ".", work)
	if err != nil {
		return nil, err
	}
	env := append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", experiments)
	list := exec.CommandContext(ctx, "go", slices.Concat([]string{"list", "-deps", tags}, flags, []string{program})...)
	list.Env, list.Stderr = env, b.stderr
	deps, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("listing the packages of the guest program: %w", err)
	}
	if err := overlay.Check(strings.Fields(string(deps))); err != nil {
		return nil, err
	}
	file := filepath.Join(work, "guest.wasm")
	build := exec.CommandContext(ctx, "go", slices.Concat([]string{"build"}, flags, []string{
		tags, "-trimpath", "-buildvcs=false", "-buildmode=c-shared", "-ldflags=-s -w -buildid=", "-o", file, program,
	})...)
	build.Env, build.Stdout, build.Stderr = env, b.stderr, b.stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("compiling the guest program: %w", err)
	}
	wasm, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	b.step("guest program: %s", size(wasm))
	return wasm, nil
}

// makeModule does everything after go build and writes the module to file.
func (b *builder) makeModule(ctx context.Context, wasm []byte, file string) error {
	exported, globals, err := bake.ExportGlobals(wasm)
	if err != nil {
		return err
	}
	baked, err := bake.Bake(ctx, exported, globals, func(line string) { fmt.Fprintln(b.stderr, line) })
	if err != nil {
		return err
	}
	b.step("with its base image: %s", size(baked))
	pages, err := bake.Pages(baked)
	if err != nil {
		return err
	}
	image, err := bake.Compile(baked)
	if err != nil {
		return err
	}
	b.step("compiled: %s", size(image))
	if image, err = bake.Strip(image); err != nil {
		return err
	}
	b.step("stripped: %s", size(image))
	encoded, err := module.Encode(image, module.Info{Digest: digest(baked), Globals: globals, Pages: pages})
	if err != nil {
		return err
	}
	if err := writeFile(file, encoded); err != nil {
		return err
	}
	m, err := module.Load(file)
	if err != nil {
		return fmt.Errorf("trying what was made: %w", err)
	}
	m.Close()
	return nil
}

// prune removes the oldest files of the cache.
func prune(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.cwasm"))
	if err != nil {
		return err
	}
	age := func(name string) time.Duration {
		st, err := os.Stat(name)
		if err != nil {
			return 0
		}
		return time.Since(st.ModTime())
	}
	slices.SortFunc(files, func(a, b string) int { return int(age(a) - age(b)) })
	for _, f := range files[min(kept, len(files)):] {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return nil
}

// copyFile leaves to alone if it is the same module already.
func copyFile(from, to string) error {
	if have, err := module.ReadInfo(to); err == nil {
		if info, err := module.ReadInfo(from); err == nil && info.Checksum == have.Checksum && info.Digest == have.Digest {
			return nil
		}
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return writeFile(to, b)
}

// writeFile never leaves half a file, nor changes one that is in use.
func writeFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(b); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Chmod(f.Name(), 0o644); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// digest is the SHA-256 of the module and of what else decides over the result.
func digest(wasm []byte, more ...string) string {
	h := sha256.New()
	h.Write(wasm)
	for _, s := range more {
		fmt.Fprintf(h, "\n%s", s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func size(b []byte) string { return fmt.Sprintf("%.1f MB", float64(len(b))/1e6) }
