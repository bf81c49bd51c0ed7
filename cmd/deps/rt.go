package main

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	_ "github.com/containernetworking/plugins/pkg/ns"
	_ "github.com/opencontainers/runc/libcontainer"
	_ "sigs.k8s.io/yaml"
	_ "github.com/spf13/pflag"
	_ "github.com/spf13/cobra"
	_ "github.com/google/go-containerregistry/pkg/v1/layout"
	_ "github.com/fsnotify/fsnotify"
	_ "golang.org/x/sync/errgroup"
	_ "github.com/prometheus/client_golang/prometheus"
	_ "github.com/coreos/go-systemd/v22/daemon"
	_ "github.com/rogpeppe/go-internal/testscript"
	_ "github.com/bombsimon/logrusr/v4"
)

import _ "github.com/opencontainers/runc/types"
