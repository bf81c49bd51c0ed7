package main

import (
	_ "github.com/bytecodealliance/wasmtime-go/v39"
	_ "github.com/containerd/containerd/v2/client"
	_ "github.com/containerd/containerd/v2/cmd/containerd/command"
	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"
	_ "github.com/k3s-io/kine/pkg/drivers/sqlite"
	_ "github.com/k3s-io/kine/pkg/endpoint"
	_ "github.com/klauspost/compress/zstd"
	_ "github.com/google/go-containerregistry/pkg/v1/tarball"
	_ "github.com/sirupsen/logrus"
	_ "github.com/urfave/cli/v2"
	_ "github.com/vishvananda/netlink"
	_ "go.etcd.io/bbolt"
	_ "k8s.io/client-go/kubernetes"
	_ "k8s.io/kubectl/pkg/cmd"
	_ "k8s.io/kubernetes/cmd/kube-apiserver/app"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	_ "k8s.io/kubernetes/cmd/kube-proxy/app"
	_ "k8s.io/kubernetes/cmd/kube-scheduler/app"
	_ "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {}
