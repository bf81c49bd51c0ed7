// Package datastore runs the cluster's store: kine, which speaks the etcd protocol over a unix socket, on
// a SQLite database.
//
// The database file holds kine's own table and two of ours, created at format 1:
//
//	kine                 id | name | created | deleted | create_revision | prev_revision | lease | value | old_value
//	dormouse_identity    id                     one row: who this database is, for good
//	dormouse_generation  number | id | revision one row per start, the newest few: who wrote since, and from which revision on
//
// A copy of the file, restored later, has the identity of the original and an older generation. What was
// remembered elsewhere about a later state is thus recognisable as not fitting, see Identity.
package datastore

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/endpoint"
	"github.com/mattn/go-sqlite3"

	"github.com/dormouse-k8s/dormouse/internal/paths"
)

// Identity says which database this is and where in its history this run began.
type Identity struct {
	// ID was drawn at random when the database was made.
	ID string
	// Previous is the Generation of the run before this one, "" at the first.
	Previous string
	// Generation was drawn at random for this run.
	Generation string
	// Revision is the highest revision in the store when this run began, 0 in a new one.
	Revision int64
}

// Store is an opened database that kine does not serve yet.
type Store struct {
	// Identity was read, and the new generation written, before anybody else could write.
	Identity Identity

	data paths.Data
}

// emulatedEtcd is the etcd version reported to the API server, which switches features by it.
const emulatedEtcd = "3.6.11"

const (
	// notifyInterval is how often the API server's watch caches are told of the present revision without
	// having asked, etcd's default (mvcc.progressReportInterval). They ask when they need it.
	notifyInterval = 10 * time.Minute
	// pollInterval is how often kine looks for what it has not been notified of. Nobody else writes to the
	// database, and kine notifies itself.
	pollInterval = 10 * time.Second
)

// params opens the database the way kine needs it. synchronous=FULL: every commit reaches the disk before
// it is acknowledged, as with etcd. NORMAL would lose the last commits at a power cut although somebody
// may have been told of them. VACUUM at each start would write the whole file again.
var params = url.Values{
	"_journal_mode":                {"WAL"},
	"_synchronous":                 {"FULL"},
	"_busy_timeout":                {"30000"},
	"_txlock":                      {"immediate"},
	"_stmt_cache_size":             {"20"},
	"_kine_disable_startup_vacuum": {"true"},
}

// Open opens the database of data, creating it with mode 0600 if there is none, and begins a new
// generation. A file that is not a sound SQLite database is an error, and is left as it is.
func Open(ctx context.Context, data paths.Data) (*Store, error) {
	s := &Store{data: data}
	if err := paths.MakeDir(filepath.Dir(data.Database()), paths.ModePrivateDir); err != nil {
		return nil, err
	}
	// SQLite gives its -wal and -shm files the mode of the database, so the first file decides.
	f, err := os.OpenFile(data.Database(), os.O_RDWR|os.O_CREATE, paths.ModePrivateFile)
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	if err := errors.Join(f.Chmod(paths.ModePrivateFile), f.Close()); err != nil {
		return nil, fmt.Errorf("setting the mode of the database: %w", err)
	}
	if s.Identity, err = begin(ctx, s.dsn()); err != nil {
		return nil, fmt.Errorf("opening the database %s: %w", data.Database(), explain(err))
	}
	return s, nil
}

func (s *Store) dsn() string {
	return (&url.URL{Scheme: "file", Path: s.data.Database(), RawQuery: params.Encode()}).String()
}

// Endpoint is where the store of data answers once it is served, in the form of --etcd-servers.
func Endpoint(data paths.Data) string { return "unix://" + data.DatabaseSocket() }

// Serve answers etcd requests at Endpoint until ctx is done, then lets requests in flight finish and
// closes the database. It calls ready when it answers.
func (s *Store) Serve(ctx context.Context, ready func()) error {
	var wg sync.WaitGroup
	_, err := endpoint.Listen(ctx, endpoint.Config{
		WaitGroup:           &wg,
		Listener:            Endpoint(s.data),
		Endpoint:            scheme + "://" + s.dsn(),
		NotifyInterval:      notifyInterval,
		EmulatedETCDVersion: emulatedEtcd,
		// The API server compacts; these bound one step of it.
		CompactTimeout:   5 * time.Second,
		CompactMinRetain: 1000,
		CompactBatchSize: 1000,
		PollBatchSize:    500,
		PollInterval:     pollInterval,
		// A burst opens up to twenty connections. Each keeps a cache of pages and of prepared statements.
		ConnectionPoolConfig: generic.ConnectionPoolConfig{MaxIdleTime: time.Minute},
	})
	if err != nil {
		return fmt.Errorf("serving the database %s: %w", s.data.Database(), err)
	}
	ready()
	<-ctx.Done()
	wg.Wait()
	if err := os.Remove(s.data.DatabaseSocket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %s: %w", s.data.DatabaseSocket(), err)
	}
	return nil
}

// generationsKept is how many starts the database remembers, for whoever has to find out what happened.
const generationsKept = 16

// begin reads the identity and starts a new generation in one durable transaction.
func begin(ctx context.Context, dsn string) (id Identity, err error) {
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		return id, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return id, err
	}
	defer tx.Rollback() // does nothing after Commit

	for _, stmt := range []string{
		`CREATE TABLE IF NOT EXISTS dormouse_identity (id TEXT NOT NULL)`,
		`CREATE TABLE IF NOT EXISTS dormouse_generation (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, revision INTEGER NOT NULL)`,
	} {
		if _, err := tx.ExecContext(ctx, stmt); err != nil {
			return id, err
		}
	}
	err = tx.QueryRowContext(ctx, `SELECT id FROM dormouse_identity`).Scan(&id.ID)
	if errors.Is(err, sql.ErrNoRows) {
		id.ID = random()
		_, err = tx.ExecContext(ctx, `INSERT INTO dormouse_identity (id) VALUES (?)`, id.ID)
	}
	if err != nil {
		return id, err
	}
	err = tx.QueryRowContext(ctx, `SELECT id FROM dormouse_generation ORDER BY number DESC LIMIT 1`).Scan(&id.Previous)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return id, err
	}
	if id.Revision, err = highestRevision(ctx, tx); err != nil {
		return id, err
	}
	id.Generation = random()
	if _, err := tx.ExecContext(ctx, `INSERT INTO dormouse_generation (id, revision) VALUES (?, ?)`, id.Generation, id.Revision); err != nil {
		return id, err
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM dormouse_generation WHERE number <= (SELECT MAX(number) FROM dormouse_generation) - ?`, generationsKept); err != nil {
		return id, err
	}
	return id, tx.Commit()
}

// highestRevision is the last revision kine has written, 0 before its first start.
func highestRevision(ctx context.Context, tx *sql.Tx) (int64, error) {
	var tables int
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'kine'`).Scan(&tables); err != nil || tables == 0 {
		return 0, err
	}
	var revision int64
	err := tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(id), 0) FROM kine`).Scan(&revision)
	return revision, err
}

// explain adds what to do to the errors of SQLite that a user can act upon.
func explain(err error) error {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code {
	case sqlite3.ErrCorrupt, sqlite3.ErrNotADB:
		return fmt.Errorf("%w; the file is damaged, restore it from a backup", err)
	case sqlite3.ErrBusy, sqlite3.ErrLocked:
		return fmt.Errorf("%w; another process has it open", err)
	}
	return err
}

func random() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
