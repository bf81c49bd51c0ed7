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
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"github.com/mattn/go-sqlite3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

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
	// maxRequest is what etcd accepts with some overhead, in bytes.
	maxRequest = embed.DefaultMaxRequestBytes + 512<<10
	// stopPatience is how long requests in flight may take to finish, as with kine's own.
	stopPatience = 2 * time.Second
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
	if err := s.serve(ctx, ready); err != nil {
		return fmt.Errorf("serving the database %s: %w", s.data.Database(), err)
	}
	return nil
}

// serve does what kine's endpoint.Listen does, with a backend and watches of our own.
func (s *Store) serve(ctx context.Context, ready func()) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	// The database is needed until the last request has its answer.
	open, closeDatabase := context.WithCancel(context.WithoutCancel(ctx))
	defer closeDatabase()
	backend, log, err := newBackend(open, &wg, s.dsn())
	if err != nil {
		return err
	}
	if err := backend.Start(open); err != nil {
		return err
	}

	socket := s.data.DatabaseSocket()
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, paths.ModePrivateFile); err != nil {
		return errors.Join(err, listener.Close())
	}
	requests := grpc.NewServer(
		grpc.StreamInterceptor(startLater(log)),
		// As etcd's own.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: embed.DefaultGRPCKeepAliveMinTime}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: embed.DefaultGRPCKeepAliveInterval, Timeout: embed.DefaultGRPCKeepAliveTimeout}),
		grpc.MaxConcurrentStreams(embed.DefaultMaxConcurrentStreams),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(math.MaxInt32),
	)
	server.New(backend, "unix", notifyInterval, emulatedEtcd).Register(requests)
	served := make(chan error, 1)
	go func() { served <- requests.Serve(listener) }()
	ready()
	select {
	case <-ctx.Done():
	case err := <-served:
		return err
	}
	kill := time.AfterFunc(stopPatience, requests.Stop)
	defer kill.Stop()
	requests.GracefulStop() // closes the listener, which removes the socket
	return <-served
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
