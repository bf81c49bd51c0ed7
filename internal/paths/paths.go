// Package paths names every file Dormouse keeps, with its mode, in one place.
package paths

import (
	"io/fs"
	"path/filepath"
)

// Defaults of the paths an administrator may change.
const (
	DataDir    = "/var/lib/dormouse"
	RunDir     = "/run/dormouse"
	ConfigFile = "/etc/dormouse/config.yaml"
	Kubeconfig = "/etc/dormouse/dormouse.yaml"
)

// Modes of files and directories.
const (
	ModePrivateDir  fs.FileMode = 0o700
	ModePublicDir   fs.FileMode = 0o755
	ModePrivateFile fs.FileMode = 0o600
	ModePublicFile  fs.FileMode = 0o644
)

// Data is the data directory. Its methods name what lies in it.
type Data string

func (d Data) join(elem ...string) string {
	return filepath.Join(append([]string{string(d)}, elem...)...)
}

// Server is the control plane's directory, readable by root alone.
func (d Data) Server() string { return d.join("server") }

// Version says which format, and which version of Dormouse, wrote the directory.
func (d Data) Version() string { return d.join("server", "version") }

// Lock is held while a server runs on the directory.
func (d Data) Lock() string { return d.join("server", "lock") }

// Token is the secret other machines join with.
func (d Data) Token() string { return d.join("server", "token") }

// NodeToken is a symbolic link to Token, the name k3s users look for.
func (d Data) NodeToken() string { return d.join("server", "node-token") }

// TLS is a file of the cluster's certificate authorities, certificates and keys.
func (d Data) TLS(name ...string) string {
	return d.join(append([]string{"server", "tls"}, name...)...)
}

// Database is the SQLite file with the cluster's state.
func (d Data) Database() string { return d.join("server", "db", "state.db") }

// DatabaseSocket is where the API server reaches the database.
func (d Data) DatabaseSocket() string { return d.join("server", "db", "kine.sock") }

// Manifests is the directory of what an administrator wants applied to the cluster.
func (d Data) Manifests() string { return d.join("server", "manifests") }

// WasmSnapshots is the bbolt file with the sleeping controllers.
func (d Data) WasmSnapshots() string { return d.join("server", "wasm", "snapshots.db") }

// Agent is a file of the node's directory.
func (d Data) Agent(name ...string) string { return d.join(append([]string{"agent"}, name...)...) }
