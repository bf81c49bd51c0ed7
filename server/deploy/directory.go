package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/sirupsen/logrus"
)

// A file is seldom written at one stroke: it is read once nothing has happened for settleTime, and at
// the latest after settleLimit.
const (
	settleTime  = 100 * time.Millisecond
	settleLimit = time.Second
)

// directory is a tree of manifests that says when something in it changes.
type directory struct {
	path    string
	watcher *fsnotify.Watcher // nil if the kernel lets us have none
	changed chan struct{}
}

// openDirectory watches path, which need not exist yet but whose parent does. Without a watcher, of
// which the kernel has a limited number, the directory can still be read.
func openDirectory(path string) *directory {
	d := &directory{path: path, changed: make(chan struct{}, 1)}
	w, err := fsnotify.NewWatcher()
	if err == nil {
		// The directory itself may go, and come back.
		err = w.Add(filepath.Dir(path))
	}
	if err != nil {
		logrus.Warnf("changes in %s will be noticed at the next start only: %v", path, err)
		return d
	}
	d.watcher = w
	go d.listen()
	return d
}

func (d *directory) close() {
	if d.watcher != nil {
		_ = d.watcher.Close()
	}
}

// listen makes one signal of any number of events, until the directory is closed.
func (d *directory) listen() {
	for {
		select {
		case event, ok := <-d.watcher.Events:
			if !ok {
				return
			}
			if filepath.Dir(event.Name) == filepath.Dir(d.path) && event.Name != d.path {
				continue // a neighbour
			}
		case err, ok := <-d.watcher.Errors:
			if !ok {
				return
			}
			logrus.Debugf("watching %s: %v", d.path, err) // too many events at once
		}
		select {
		case d.changed <- struct{}{}:
		default:
		}
	}
}

// settle waits until nothing has changed for a moment.
func (d *directory) settle(ctx context.Context) {
	quiet, limit := time.NewTimer(settleTime), time.NewTimer(settleLimit)
	defer quiet.Stop()
	defer limit.Stop()
	for {
		select {
		case <-d.changed:
			quiet.Reset(settleTime)
		case <-quiet.C:
			return
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// files returns the paths of all manifests, sorted within each directory. What cannot be read is left
// out and named in the error.
func (d *directory) files() ([]string, error) {
	files, err := d.list(d.path, true)
	if errors.Is(err, fs.ErrNotExist) && len(files) == 0 {
		return nil, nil
	}
	return files, err
}

// list follows links to files everywhere and links to directories at the top, so that it comes to an end.
func (d *directory) list(dir string, top bool) (files []string, err error) {
	var errs []error
	if d.watcher != nil {
		// Before it is read, so that nothing is missed.
		if err := d.watcher.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("watching %s: %w", dir, err))
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		errs = append(errs, err)
	}
	skip := func(name string) bool {
		return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name+skipSuffix })
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // has gone, or is a link to nowhere
		case err != nil:
			errs = append(errs, err)
		case info.IsDir():
			if e.Type()&fs.ModeSymlink == 0 || top {
				below, err := d.list(path, false)
				files, errs = append(files, below...), append(errs, err)
			}
		case info.Mode().IsRegular() && isManifest(e.Name()) && !skip(e.Name()):
			files = append(files, path)
		}
	}
	return files, errors.Join(errs...)
}

// skipSuffix added to the name of a manifest is the name of a file that suppresses it.
const skipSuffix = ".skip"

// isManifest goes by the name. Editors hide their temporary files behind a dot.
func isManifest(name string) bool {
	extension := strings.ToLower(filepath.Ext(name))
	return !strings.HasPrefix(name, ".") && slices.Contains([]string{".yaml", ".yml", ".json"}, extension)
}
