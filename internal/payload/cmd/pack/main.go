// Command pack makes the single-file distribution: it copies a program and packs
// files behind it. It needs the program zstd.
//
//	pack -o bin/dormouse build/dormouse build/controllers.cwasm …
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/dormouse-k8s/dormouse/internal/payload"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := doMain(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func doMain(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("pack", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("o", "", "`file` to write")
	cache := flags.String("cache", "", "`directory` of compressed files (default: dormouse/packed in the user's cache directory)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || flags.NArg() < 1 {
		return errors.New("usage: pack -o OUT PROGRAM [FILE...]")
	}
	if *cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			dir = "build/cache"
		}
		*cache = filepath.Join(dir, "dormouse", "packed")
	}
	if err := os.MkdirAll(filepath.Dir(*out), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(*out), filepath.Base(*out)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	c := compressor{ctx: ctx, dir: *cache, stderr: stderr}
	if err := payload.Append(f, flags.Arg(0), flags.Args()[1:], c.compress); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Chmod(f.Name(), 0o755); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), *out); err != nil {
		return err
	}
	return c.prune()
}
