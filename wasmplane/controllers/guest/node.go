package main

import (
	"context"
	"fmt"
	"net"
	"strings"

	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/nodeipam"
	"k8s.io/kubernetes/pkg/controller/nodeipam/ipam"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
	"k8s.io/kubernetes/pkg/controller/tainteviction"
	netutils "k8s.io/utils/net"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

func init() {
	register(controllers.NodeIPAMController, "node-controller", newNodeIPAM)
	register(controllers.NodeLifecycleController, "node-controller", newNodeLifecycle)
	register(controllers.TaintEvictionController, "node-controller", newTaintEviction)
}

func newNodeIPAM(ctx context.Context, env *environment) (func(context.Context), error) {
	cluster, err := parseCIDRs(env.options.ClusterCIDR)
	if err != nil {
		return nil, fmt.Errorf("cluster CIDR: %w", err)
	}
	service, err := parseCIDRs(env.options.ServiceCIDR)
	if err != nil {
		return nil, fmt.Errorf("service CIDR: %w", err)
	}
	sizes := make([]int, len(cluster))
	for i, c := range cluster {
		sizes[i] = env.options.NodeCIDRMaskSize
		if netutils.IsIPv6CIDR(c) {
			sizes[i] = env.options.NodeCIDRMaskSizeIPv6
		}
	}
	service = append(service, nil, nil) // absent ones are nil
	c, err := nodeipam.NewNodeIpamController(
		ctx,
		env.informers.Core().V1().Nodes(),
		nil, // no cloud provider
		env.client,
		cluster,
		service[0],
		service[1],
		sizes,
		ipam.RangeAllocatorType,
	)
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

// parseCIDRs reads at most two prefixes with a comma between, of different
// families.
func parseCIDRs(list string) ([]*net.IPNet, error) {
	if strings.TrimSpace(list) == "" {
		return nil, nil
	}
	cidrs, err := netutils.ParseCIDRs(strings.Split(strings.TrimSpace(list), ","))
	if err != nil {
		return nil, err
	}
	if len(cidrs) > 1 {
		if dual, err := netutils.IsDualStackCIDRs(cidrs); err != nil {
			return nil, err
		} else if !dual || len(cidrs) > 2 {
			return nil, fmt.Errorf("%s: want one prefix, or one of IPv4 and one of IPv6", list)
		}
	}
	return cidrs, nil
}

func newNodeLifecycle(ctx context.Context, env *environment) (func(context.Context), error) {
	c, err := nodelifecycle.NewNodeLifecycleController(
		ctx,
		env.informers.Coordination().V1().Leases(),
		env.informers.Core().V1().Pods(),
		env.informers.Core().V1().Nodes(),
		env.informers.Apps().V1().DaemonSets(),
		env.client,
		env.options.NodeMonitorPeriod,
		env.options.NodeStartupGracePeriod,
		env.options.NodeMonitorGracePeriod,
		env.options.NodeEvictionRate,
		env.options.SecondaryNodeEvictionRate,
		env.options.LargeClusterSizeThreshold,
		env.options.UnhealthyZoneThreshold,
	)
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

func newTaintEviction(ctx context.Context, env *environment) (func(context.Context), error) {
	// In kube-controller-manager the informer is shared with the node lifecycle
	// controller, which adds the index that this one relies on.
	if err := controller.AddPodNodeNameIndexer(env.informers.Core().V1().Pods().Informer()); err != nil {
		return nil, err
	}
	c, err := tainteviction.New(
		ctx,
		env.client,
		env.informers.Core().V1().Pods(),
		env.informers.Core().V1().Nodes(),
		controllers.TaintEvictionController,
	)
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}
