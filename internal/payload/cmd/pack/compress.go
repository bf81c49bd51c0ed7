package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/dormouse-k8s/dormouse/internal/payload"
)

// kept is how many compressed files stay in the cache.
const kept = 8

// options of zstd: the strongest compression that can be undone with little memory.
// The module takes minutes, a download over a slow line takes longer.
var options = []string{
	"--quiet", "--force", "--threads=0", "--ultra", "-20",
	fmt.Sprintf("--long=%d", bits.Len(payload.MaxWindow)-1),
}

// compressor compresses each content once.
type compressor struct {
	ctx    context.Context
	dir    string // of what it has compressed, by content
	stderr io.Writer
}

// compress is a payload.Compressor.
func (c compressor) compress(file string) (io.ReadCloser, error) {
	key, err := contentKey(file)
	if err != nil {
		return nil, err
	}
	cached := filepath.Join(c.dir, key+".zst")
	if f, err := os.Open(cached); err == nil {
		now := time.Now()
		_ = os.Chtimes(cached, now, now) // for prune
		return f, nil
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	fmt.Fprintf(c.stderr, "pack: compressing %s\n", file)
	partial := cached + fmt.Sprintf(".%d", os.Getpid())
	defer os.Remove(partial)
	zstd := exec.CommandContext(c.ctx, "zstd", slices.Concat(options, []string{"-o", partial, file})...)
	zstd.Stdout, zstd.Stderr = c.stderr, c.stderr
	if err := zstd.Run(); err != nil {
		return nil, fmt.Errorf("running %s: %w", zstd, err)
	}
	if err := os.Rename(partial, cached); err != nil {
		return nil, err
	}
	return os.Open(cached)
}

// contentKey identifies what is compressed, and how.
func contentKey(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	fmt.Fprintln(h, options)
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// prune removes the oldest files of the cache.
func (c compressor) prune() error {
	names, err := filepath.Glob(filepath.Join(c.dir, "*.zst"))
	if err != nil {
		return err
	}
	age := map[string]int64{}
	for _, name := range names {
		if st, err := os.Stat(name); err == nil {
			age[name] = st.ModTime().Unix()
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(age[b], age[a]) })
	for _, name := range names[min(kept, len(names)):] {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return nil
}
