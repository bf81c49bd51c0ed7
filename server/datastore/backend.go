package datastore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/logstructured"
	"github.com/k3s-io/kine/pkg/logstructured/sqllog"
	"github.com/k3s-io/kine/pkg/server"
	"github.com/sirupsen/logrus"
)

// scheme names kine's driver for SQLite with a backend that tells of failed writes.
const scheme = "dormouse"

func init() { drivers.Register(scheme, newBackend) }

func newBackend(ctx context.Context, wg *sync.WaitGroup, cfg *drivers.Config) (leaderElect bool, _ server.Backend, err error) {
	_, dialect, err := sqlite.NewVariant(ctx, wg, "sqlite3", cfg)
	if err != nil {
		return false, nil, err
	}
	return false, backend{logstructured.New(&log{Log: sqllog.New(dialect, wg, cfg)})}, nil
}

// backend is kine's own, but for writes that fail. Kine's takes each failure for a conflict with what is there: if the
// disk is full or has become read-only, it reports a new key as created although it is not, and has who changes a
// present one try again without end.
type backend struct{ server.Backend }

func (b backend) Create(ctx context.Context, key string, value []byte, lease int64) (revision int64, err error) {
	ctx, w := withWrite(ctx)
	revision, err = b.Backend.Create(ctx, key, value, lease)
	return revision, w.orFailure(err)
}

func (b backend) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue, bool, error) {
	ctx, w := withWrite(ctx)
	at, kv, updated, err := b.Backend.Update(ctx, key, value, revision, lease)
	return at, kv, updated, w.orFailure(err)
}

func (b backend) Delete(ctx context.Context, key string, revision int64) (int64, *server.KeyValue, bool, error) {
	ctx, w := withWrite(ctx)
	at, kv, deleted, err := b.Backend.Delete(ctx, key, revision)
	return at, kv, deleted, w.orFailure(err)
}

// write is one of these calls: what became of its last attempt to write.
type write struct{ failed error }

type writeKey struct{}

func withWrite(ctx context.Context) (context.Context, *write) {
	w := &write{}
	return context.WithValue(ctx, writeKey{}, w), w
}

func (w *write) orFailure(err error) error {
	if w.failed != nil {
		return fmt.Errorf("writing to the database: %w", w.failed)
	}
	return err
}

// log is kine's log of all changes. It notes for backend what failed, and says in the server's log when writes begin
// to fail and when they no longer do.
type log struct {
	logstructured.Log
	failing atomic.Bool
}

func (l *log) Append(ctx context.Context, e *server.Event) (revision int64, err error) {
	revision, err = l.Log.Append(ctx, e)
	failed := err
	if errors.Is(err, server.ErrKeyExists) {
		failed = nil // a conflict after all
	}
	if w, ok := ctx.Value(writeKey{}).(*write); ok {
		w.failed = failed
	}
	switch {
	case ctx.Err() != nil: // nobody waits for it
	case failed != nil && !l.failing.Swap(true):
		logrus.Errorf("the database cannot be written, changes are refused: %v", failed)
	case err == nil && l.failing.Load() && l.failing.Swap(false):
		logrus.Info("the database can be written again")
	}
	return revision, err
}
