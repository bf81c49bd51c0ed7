// Package images brings container images from files into containerd, so that a
// node needs no registry.
//
// Archives, as `docker save`, `ctr image export` and most build tools write
// them, are imported once each, while starting and later when they appear. The
// images are pinned: the kubelet does not remove them to make room. An archive
// that cannot be imported is reported and otherwise ignored.
package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/client"
	coreimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/fsnotify/fsnotify"
	"github.com/sirupsen/logrus"
)

// Labels by which containerd's CRI plugin knows its images and what not to remove.
const (
	managedLabel = "io.cri-containerd.image"
	managedValue = "managed"
	pinnedLabel  = "io.cri-containerd.pinned"
	pinnedValue  = "pinned"
)

// namespace is containerd's namespace for Kubernetes.
const namespace = "k8s.io"

// settle is how long the directory must have been quiet before new archives are
// read: they may still be being copied.
const settle = 2 * time.Second

// Config says which archives to import, and where to.
type Config struct {
	// Dirs are directories with archives. They are created if they are missing
	// and watched while running.
	Dirs []string
	// Ledger is the file that remembers what has been imported.
	Ledger string
	// Socket is containerd's.
	Socket string
	// Snapshotter is what containerd unpacks images with.
	Snapshotter string
}

// Run imports what is there, calls ready, and goes on watching the directories
// until ctx is done.
func Run(ctx context.Context, cfg Config, ready func()) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch for image archives: %w", err)
	}
	defer watcher.Close()
	for _, dir := range cfg.Dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("create the directory for image archives: %w", err)
		}
		if err := watcher.Add(dir); err != nil {
			return fmt.Errorf("watch %s for image archives: %w", dir, err)
		}
	}
	ledger, err := openLedger(cfg.Ledger)
	if err != nil {
		return err
	}
	c, err := client.New(cfg.Socket, client.WithDefaultNamespace(namespace))
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	defer c.Close()

	imp := importer{cfg: cfg, client: c, ledger: ledger, failed: map[string]bool{}}
	if err := imp.scan(ctx); err != nil {
		return err
	}
	ready()

	quiet := time.NewTimer(settle)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event := <-watcher.Events:
			if isArchiveName(filepath.Base(event.Name)) && !event.Has(fsnotify.Remove) && !event.Has(fsnotify.Chmod) {
				quiet.Reset(settle)
			}
		case err := <-watcher.Errors:
			// The queue overflowed: something was missed, so look at everything.
			logrus.Warnf("Watching for image archives: %v", err)
			quiet.Reset(settle)
		case <-quiet.C:
			if err := imp.scan(ctx); err != nil {
				return err
			}
		}
	}
}

type importer struct {
	cfg    Config
	client *client.Client
	ledger *ledger
	// failed are the digests of archives that were reported once already.
	failed map[string]bool
}

// scan imports the archives that are new. It fails only when it could not go on
// with any archive.
func (i *importer) scan(ctx context.Context) error {
	for _, dir := range i.cfg.Dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed while running
		}
		if err != nil {
			return fmt.Errorf("look for image archives: %w", err)
		}
		for _, e := range entries {
			if !isArchiveName(e.Name()) {
				continue
			}
			path := filepath.Join(dir, e.Name())
			if err := i.visit(ctx, path); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				logrus.Warnf("Ignoring image archive %s: %v", path, err)
			}
		}
	}
	return nil
}

// visit imports one archive unless that has been done.
func (i *importer) visit(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return err
	} else if !st.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	digest, err := digestOf(f)
	if err != nil {
		return err
	}
	if i.failed[digest] {
		return nil
	}
	if known, ok := i.ledger.Archives[digest]; ok {
		there, err := i.present(ctx, known)
		if err != nil || there {
			return err
		}
	}
	start := time.Now()
	imported, err := i.load(ctx, f)
	if err != nil {
		if ctx.Err() == nil {
			i.failed[digest] = true
		}
		return err
	}
	for name := range imported {
		logrus.Infof("Imported image %s from %s in %v", name, path, time.Since(start).Round(time.Millisecond))
	}
	return i.ledger.add(digest, record{File: filepath.Base(path), Images: imported})
}

func digestOf(f io.ReadSeeker) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// present reports whether containerd still has all images of an archive.
// Someone may have removed one, or containerd's whole directory. An image of
// the same name from elsewhere counts: it was put there on purpose.
func (i *importer) present(ctx context.Context, r record) (bool, error) {
	for name := range r.Images {
		switch _, err := i.client.ImageService().Get(ctx, name); {
		case errdefs.IsNotFound(err):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("look up image %s: %w", name, err)
		}
	}
	return true, nil
}

// load imports an archive's images, unpacked, labelled and pinned, and returns
// their names and digests.
func (i *importer) load(ctx context.Context, archive io.Reader) (map[string]string, error) {
	tar, err := openTar(archive)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	ctx = namespaces.WithNamespace(ctx, namespace)
	// Without a lease containerd might collect the layers before they belong to
	// an image.
	ctx, done, err := i.client.WithLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("take a lease: %w", err)
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()

	platform := platforms.Default()
	found, err := i.client.Import(ctx, tar, client.WithImportPlatform(platform), client.WithSkipMissing())
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("it holds no image with a name for this platform")
	}
	imported := make(map[string]string, len(found))
	for _, img := range found {
		if err := i.adopt(ctx, img, platform); err != nil {
			return nil, fmt.Errorf("image %s: %w", img.Name, err)
		}
		imported[img.Name] = img.Target.Digest.String()
	}
	return imported, nil
}

// adopt unpacks an imported image and gives it the labels of a pinned image.
func (i *importer) adopt(ctx context.Context, img coreimages.Image, platform platforms.MatchComparer) error {
	if err := client.NewImageWithPlatform(i.client, img, platform).Unpack(ctx, i.cfg.Snapshotter); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	if img.Labels == nil {
		img.Labels = map[string]string{}
	}
	img.Labels[managedLabel], img.Labels[pinnedLabel] = managedValue, pinnedValue
	if _, err := i.client.ImageService().Update(ctx, img, "labels."+managedLabel, "labels."+pinnedLabel); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	return nil
}
