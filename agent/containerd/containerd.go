// Package containerd runs containerd inside this process.
//
// Only the daemon is in process. What must outlive it, the shims, is a program
// of its own (cmd/dormouse-rt), so containers keep running when the process
// restarts and are found again.
package containerd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins" // registers containerd's plugins
	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// Programs are the names under which containerd and the container runtime
// execute programs of cmd/dormouse-rt.
var Programs = []string{"containerd-shim-runc-v2", "runc", "bridge", "host-local", "loopback", "firewall", "portmap"}

// Run writes the configuration, starts containerd, calls ready once it answers,
// and returns when ctx is done. Run can be called once in a process: containerd
// keeps global state. It also goes on serving until the process ends, because
// so does the kubelet, which would report a node without a runtime as broken.
// Nothing is lost by that: what containerd remembers is in committed
// transactions, and containers are the shims' business.
//
// The directory Config.BinDir must come first in the process's PATH: containerd
// looks there for the shims of the containers that it finds running, and kills
// those it finds no shim for.
func Run(ctx context.Context, cfg Config, ready func()) error {
	if err := cfg.checkPath(); err != nil {
		return err
	}
	if err := cfg.write(); err != nil {
		return err
	}
	// containerd reports each of its fifty plugins at info level, and what its
	// optional ones miss on this machine as warnings. Those lines are for people
	// who debug it.
	log.L = logrus.NewEntry(cfg.logger()).WithField("component", "containerd")
	ctx = log.WithLogger(ctx, log.L)

	config := &srvconfig.Config{Version: version.ConfigVersion, Plugins: map[string]any{}}
	if err := srvconfig.LoadConfigWithPlugins(ctx, cfg.File, nil, config); err != nil {
		return fmt.Errorf("load containerd's configuration: %w", err)
	}
	if err := server.CreateTopLevelDirectories(config); err != nil {
		return fmt.Errorf("create containerd's directories: %w", err)
	}
	// A crash may have left the mounts of an image import behind.
	if err := mount.SetTempMountLocation(filepath.Join(config.Root, "tmpmounts")); err != nil {
		return fmt.Errorf("create containerd's directory for temporary mounts: %w", err)
	}
	if warnings, err := mount.CleanupTempMounts(0); err != nil || len(warnings) > 0 {
		log.G(ctx).Warnf("clean up temporary mounts: %v %v", err, warnings)
	}

	alive := context.WithoutCancel(ctx)
	srv, err := server.New(alive, config)
	if err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	if err := srv.Start(alive); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	booted := make(chan struct{})
	go func() {
		srv.Wait()
		close(booted)
	}()
	select {
	case <-booted:
		ready()
		<-ctx.Done()
	case <-ctx.Done():
	}
	return nil
}

// DetectSnapshotter returns "overlayfs" if the file system below root can hold
// it, else "native", which copies files. It creates root.
func DetectSnapshotter(root string) (string, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return "", err
	}
	if err := overlayutils.Supported(root); err != nil {
		logrus.Warnf("Containers use more disk and start slower: %s does not support overlayfs: %v", root, err)
		return "native", nil
	}
	return "overlayfs", nil
}

// checkPath makes sure that containerd will find the container runtime.
func (c Config) checkPath() error {
	for _, name := range Programs[:2] {
		want := filepath.Join(c.BinDir, name)
		if got, err := exec.LookPath(name); err != nil || got != want {
			return fmt.Errorf("start containerd: PATH leads to %q instead of %s", got, want)
		}
	}
	return nil
}

// write creates the directories and the configuration file.
func (c Config) write() error {
	content, err := c.render()
	if err != nil {
		return err
	}
	for _, dir := range []string{c.StateDir, filepath.Dir(c.File), c.CNIConfig} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	return os.WriteFile(c.File, content, 0o600)
}

// logger is the standard logger, but quiet unless debugging.
func (c Config) logger() *logrus.Logger {
	std := logrus.StandardLogger()
	if c.Debug {
		return std
	}
	return &logrus.Logger{Out: std.Out, Hooks: std.Hooks, Formatter: std.Formatter, ExitFunc: std.ExitFunc, Level: logrus.ErrorLevel}
}
