package containerd

import (
	"bytes"
	_ "embed"
	"fmt"
	"path/filepath"
	"strconv"
	"text/template"
)

// Config says where containerd lives and what it runs containers with. All
// paths are absolute.
type Config struct {
	Root      string // persistent data
	StateDir  string // sockets and what lasts until the machine restarts
	File      string // where the generated configuration is written
	BinDir    string // directory with the shim, runc and the CNI plugins
	CNIConfig string // directory of the CNI configuration
	// PauseImage is the reference of the pod sandbox's image.
	PauseImage string
	// Snapshotter is "overlayfs", or "native" on file systems that cannot.
	Snapshotter string
	// RestrictOOMScoreAdj is for processes without CAP_SYS_RESOURCE, which may
	// not give containers an OOM score below their own.
	RestrictOOMScoreAdj bool
	// Debug lets containerd log everything.
	Debug bool
}

// Socket is where containerd listens.
func (c Config) Socket() string { return filepath.Join(c.StateDir, "containerd.sock") }

//go:embed config.toml.tmpl
var configTemplate string

var configTOML = template.Must(template.New("config.toml").
	Funcs(template.FuncMap{"quote": strconv.Quote}).
	Parse(configTemplate))

// render returns the configuration file.
func (c Config) render() ([]byte, error) {
	var b bytes.Buffer
	if err := configTOML.Execute(&b, c); err != nil {
		return nil, fmt.Errorf("render containerd's configuration: %w", err)
	}
	return b.Bytes(), nil
}
