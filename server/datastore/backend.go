package datastore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/logstructured"
	"github.com/k3s-io/kine/pkg/logstructured/sqllog"
	"github.com/k3s-io/kine/pkg/server"
	"github.com/sirupsen/logrus"
)

const (
	// pollInterval is how often kine looks for what it has not been notified of. Nobody else writes to the database,
	// and kine notifies itself.
	pollInterval = 10 * time.Second
	// compactMinRetain is how many revisions stay when the API server compacts all that are five minutes old.
	compactMinRetain = 1000
)

// newBackend is kine on a database, which stays open until ctx is done; wg is done when it is closed.
func newBackend(ctx context.Context, wg *sync.WaitGroup, dsn string) (backend, *log, error) {
	config := &drivers.Config{
		DataSourceName: dsn,
		// The API server compacts; these bound one step of it.
		CompactTimeout:   5 * time.Second,
		CompactMinRetain: compactMinRetain,
		CompactBatchSize: 1000,
		PollBatchSize:    500,
		PollInterval:     pollInterval,
		// A burst opens up to twenty connections. Each keeps a cache of pages and of prepared statements.
		ConnectionPoolConfig: generic.ConnectionPoolConfig{MaxIdleTime: time.Minute},
	}
	_, dialect, err := sqlite.NewVariant(ctx, wg, "sqlite3", config)
	if err != nil {
		return backend{}, nil, err
	}
	log := &log{Log: sqllog.New(dialect, wg, config)}
	return backend{logstructured.New(log)}, log, nil
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
// to fail and when they no longer do. What nobody can be told any more it does not read.
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

// After is kine's, which reads everything there is before it finds that what was asked for has been compacted.
func (l *log) After(ctx context.Context, key, end string, revision, limit int64) (server.EventBatch, error) {
	compacted, err := l.CompactRevision(ctx)
	if err != nil {
		return server.EventBatch{}, err
	}
	if revision > 0 && revision < compacted {
		current, err := l.CurrentRevision(ctx)
		if err == nil {
			err = server.ErrCompacted // as it is: who calls compares it
		}
		return server.EventBatch{CurrentRev: current}, err
	}
	return l.Log.After(ctx, key, end, revision, limit)
}
