package parity

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

var networks = []trial{
	{"endpoints", "endpoints-controller endpointslice-controller", endpoints},
	{"endpoints-many", "endpoints-controller endpointslice-controller", manyEndpoints},
	{"endpoints-terminating", "endpoints-controller endpointslice-controller", terminatingEndpoints},
	{"endpoints-mirroring", "endpointslice-mirroring-controller garbage-collector-controller", mirroring},
	{"service-cidr", "service-cidr-controller", serviceCIDR},
}

// Services of this suite are headless: none takes an address that another tests.
const service = `
apiVersion: v1
kind: Service
metadata: {name: %s, labels: {of: parity}}
spec: {clusterIP: None, %s ports: [{name: http, port: 80, targetPort: web}, {name: dns, port: 53, protocol: UDP}]}`

const servingPod = `
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: web}, annotations: {%s}}
spec: {nodeName: %s, containers: [{name: main, image: none, ports: [{name: web, containerPort: 8080}]}]}`

// slicesOf selects the endpoint slices of a service.
func slicesOf(service string) string { return "kubernetes.io/service-name=" + service }

func endpoints(r *run) {
	r.apply(service, "web", "selector: {app: web},")
	r.apply(servingPod, "first", "", "hollow-0")
	r.apply(servingPod, "second", "", "hollow-1")
	r.apply(servingPod, "unready", hollow.Ready+": 'false'", "hollow-1")
	r.apply(servingPod, "other", "", "hollow-0")
	r.patch("pods/other", "metadata: {labels: {app: other}}")
	ip := func(pod string) string {
		r.Helper()
		return fmt.Sprint(field(r.reaches("pods/"+pod, "status: {podIP: '*'}"), "status", "podIP"))
	}
	type address struct{ ip, pod, node string }
	first, second := address{ip("first"), "first", "hollow-0"}, address{ip("second"), "second", "hollow-1"}
	unready := address{ip("unready"), "unready", "hollow-1"}
	// is waits for the addresses in both kinds of object, ready and not ready.
	is := func(ready, not []address) {
		r.Helper()
		r.eventually("addresses", func(ctx context.Context) error {
			list := func(all []address) string {
				text := ""
				slices.SortFunc(all, func(a, b address) int { return strings.Compare(a.ip, b.ip) })
				for _, a := range all {
					text += fmt.Sprintf("{ip: %s, nodeName: %s, targetRef: {kind: Pod, name: %s, namespace: %s, uid: '*'}}, ", a.ip, a.node, a.pod, r.ns)
				}
				return text
			}
			subsets := ""
			if len(ready)+len(not) > 0 {
				subsets = "{"
				if len(ready) > 0 {
					subsets += "addresses: [" + list(ready) + "], "
				}
				if len(not) > 0 {
					subsets += "notReadyAddresses: [" + list(not) + "], "
				}
				subsets += "}"
			}
			check, _ := r.matches("endpoints/web", "{metadata: {labels: {of: parity, endpoints.kubernetes.io/managed-by: endpoint-controller, service.kubernetes.io/headless: ''}}, subsets: [%s]}", subsets)
			if err := check(ctx); err != nil {
				return err
			}
			all := r.list("endpointslices", slicesOf("web"))
			if len(all) != 1 {
				return fmt.Errorf("%d slices", len(all))
			}
			have, _ := field(&all[0], "endpoints").([]any)
			if len(have) != len(ready)+len(not) {
				return fmt.Errorf("%d endpoints in %s", len(have), show(&all[0]))
			}
			for i, group := range [][]address{ready, not} {
				for _, a := range group {
					want := r.value(fmt.Sprintf(`
addresses: ["%s"]
conditions: {ready: %[2]v, terminating: false}
nodeName: %[3]s
targetRef: {kind: Pod, name: %[4]s, namespace: %[5]s, uid: "*"}`, a.ip, i == 0, a.node, a.pod, r.ns))
					if !slices.ContainsFunc(have, func(h any) bool { return match("", want, h) == nil }) {
						return fmt.Errorf("not as wanted: %s in\n%s", a.pod, show(&all[0]))
					}
				}
			}
			return nil
		})
	}
	is([]address{first, second}, []address{unready})
	r.counted(1, "endpointslices", slicesOf("web"), `
metadata:
  generateName: web-
  labels: {endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io, of: parity, service.kubernetes.io/headless: ""}
  ownerReferences: %s
addressType: IPv4`, ownedBy(r.get("services/web")))
	// Ready, no longer ready, no longer selected, deleted.
	r.patch("pods/unready", "metadata: {annotations: {%s: null}}", hollow.Ready)
	is([]address{first, second, unready}, nil)
	r.patch("pods/first", "metadata: {annotations: {%s: 'false'}}", hollow.Ready)
	is([]address{second, unready}, []address{first})
	r.patch("pods/second", "metadata: {labels: {app: other}}")
	is([]address{unready}, []address{first})
	r.delete("pods/unready")
	is(nil, []address{first})
	// Who asks for it gets those that are not ready as if they were.
	r.patch("services/web", "spec: {publishNotReadyAddresses: true}")
	is([]address{first}, nil)
	// Another selector.
	r.patch("services/web", "spec: {selector: {app: other}}")
	is([]address{second, {ip("other"), "other", "hollow-0"}}, nil)
	// Without one, nobody touches what is there; with the service it goes.
	r.delete("services/web")
	r.absent("endpoints/web")
	r.count(0, "endpointslices", slicesOf("web"), "{}")
}

// A slice holds a hundred endpoints.
func manyEndpoints(r *run) {
	const pods = 105
	r.apply(service, "web", "selector: {app: web},")
	for i := range pods {
		r.apply(servingPod, fmt.Sprintf("web-%d", i), "", "hollow-0")
	}
	r.holds("all endpoints", func(ctx context.Context) error {
		slices, old, err := r.Addresses(ctx, r.ns, "web")
		if err == nil && (len(slices) != pods || len(old) != pods) {
			err = fmt.Errorf("%d in slices, %d in endpoints", len(slices), len(old))
		}
		return err
	})
	r.count(2, "endpointslices", slicesOf("web"), "{addressType: IPv4, ports: ['*', '*']}")
}

// A pod that ends serves until it has ended.
func terminatingEndpoints(r *run) {
	r.apply(service, "web", "selector: {app: web},")
	r.apply(servingPod, "ends", hollow.Linger+": 'true'", "hollow-0")
	r.counted(1, "endpointslices", slicesOf("web"), "endpoints: [{conditions: {ready: true, serving: true, terminating: false}}]")
	r.delete("pods/ends")
	r.counted(1, "endpointslices", slicesOf("web"), "endpoints: [{conditions: {ready: false, serving: true, terminating: true}}]")
	r.reaches("endpoints/web", "subsets: null")
	r.patch("pods/ends", "metadata: {annotations: {%s: null}}", hollow.Linger)
	r.count(1, "endpointslices", slicesOf("web"), "endpoints: null")
	r.want("endpoints/web", "subsets: null")
}

func mirroring(r *run) {
	r.apply(service, "outside", "")
	r.apply(`
apiVersion: v1
kind: Endpoints
metadata: {name: outside, labels: {mine: "yes"}}
subsets: [{addresses: [{ip: 192.0.2.1}], notReadyAddresses: [{ip: 192.0.2.2}], ports: [{name: http, port: 8080}]}]`)
	mirrored := r.counted(1, "endpointslices", slicesOf("outside"), `
metadata:
  labels: {endpointslice.kubernetes.io/managed-by: endpointslicemirroring-controller.k8s.io, mine: "yes"}
  ownerReferences: %s
addressType: IPv4
endpoints:
- {addresses: [192.0.2.1], conditions: {ready: true}}
- {addresses: [192.0.2.2], conditions: {ready: false}}
ports: [{name: http, port: 8080, protocol: TCP}]`, ownedBy(r.get("endpoints/outside")))
	r.patch("endpoints/outside", "subsets: [{addresses: [{ip: 192.0.2.3}], ports: [{name: http, port: 8081}]}]")
	r.counted(1, "endpointslices", slicesOf("outside"), `
metadata: {name: %s}
endpoints: [{addresses: [192.0.2.3], conditions: {ready: true}}]
ports: [{name: http, port: 8081}]`, mirrored[0].GetName())
	// Both families, a slice each.
	r.patch("endpoints/outside", "subsets: [{addresses: [{ip: 192.0.2.3}, {ip: '2001:db8::1'}], ports: [{name: http, port: 8081}]}]")
	r.counted(2, "endpointslices", slicesOf("outside"), "ports: [{name: http, port: 8081}]")
	r.patch("endpoints/outside", "metadata: {labels: {endpointslice.kubernetes.io/skip-mirror: 'true'}}")
	r.counted(0, "endpointslices", slicesOf("outside"), "{}")
	r.patch("endpoints/outside", "metadata: {labels: {endpointslice.kubernetes.io/skip-mirror: null}}")
	r.counted(2, "endpointslices", slicesOf("outside"), "{}")
	r.delete("endpoints/outside")
	r.counted(0, "endpointslices", slicesOf("outside"), "{}")
	r.want("services/outside", "metadata: {deletionTimestamp: null}")
	// One's own slices are one's own.
	r.apply("{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: mine, labels: {kubernetes.io/service-name: outside}}, addressType: IPv4, endpoints: [{addresses: [192.0.2.9]}], ports: []}")
	r.count(1, "endpointslices", slicesOf("outside"), "{metadata: {name: mine, deletionTimestamp: null}, endpoints: [{addresses: [192.0.2.9]}]}")
}

func serviceCIDR(r *run) {
	const cidr = "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: %s}, spec: {cidrs: [%s]}}"
	const ready = "{metadata: {finalizers: [networking.k8s.io/service-cidr-finalizer]}, status: {conditions: [{type: Ready, status: 'True'}]}}"
	r.want("servicecidrs/kubernetes", ready)
	r.apply(cidr, "parity-unused", "10.45.0.0/28")
	r.reaches("servicecidrs/parity-unused", ready)
	r.delete("servicecidrs/parity-unused")
	r.absent("servicecidrs/parity-unused")

	r.apply(cidr, "parity-used", "10.44.0.0/28")
	r.reaches("servicecidrs/parity-used", ready)
	r.eventually("a service in the new range", func(context.Context) error {
		_, err := r.create("{apiVersion: v1, kind: Service, metadata: {name: inside}, spec: {clusterIP: 10.44.0.5, ports: [{port: 80}]}}")
		return err
	})
	r.reaches("ipaddresses/10.44.0.5", "{metadata: {labels: {ipaddress.kubernetes.io/managed-by: ipallocator.k8s.io}}, spec: {parentRef: {resource: services, namespace: %s, name: inside}}}", r.ns)
	r.delete("servicecidrs/parity-used")
	r.reaches("servicecidrs/parity-used", "{metadata: {deletionTimestamp: '*'}, status: {conditions: [{type: Ready, status: 'False', reason: Terminating}]}}")
	r.delete("services/inside")
	r.absent("servicecidrs/parity-used")
	r.absent("ipaddresses/10.44.0.5")
}
