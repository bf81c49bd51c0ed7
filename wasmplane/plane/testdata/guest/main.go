// Command guest is the module that the plane's tests run.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/guest"
)

func main() {}

func init() {
	for _, number := range []string{"", "-2", "-3"} {
		guest.Register("fold"+number, fold)
		guest.Register("mirror"+number, mirror)
	}
	guest.Register("cache", cache)
	guest.Register("litter", litter)
	guest.Register("ticker", ticker)
	guest.Register("poller", poller)
	guest.Register("watchful", func(context.Context, abi.Start) error {
		for {
			time.Sleep(200 * time.Millisecond)
		}
	})
	guest.Register("panic", onEvent(func() { panic("as asked") }))
	guest.Register("loop", onEvent(func() {
		for n := 0; ; n++ {
			sink = []byte{byte(n)}
		}
	}))
	guest.Register("bomb", onEvent(func() {
		for {
			hoard = append(hoard, make([]byte, 1<<20))
		}
	}))
	guest.Register("recurse", onEvent(func() { fmt.Println(recurse(1)) }))
	guest.Register("restless", func(context.Context, abi.Start) error {
		for {
			time.Sleep(time.Millisecond)
		}
	})
	guest.Register("return", func(context.Context, abi.Start) error { return fmt.Errorf("it does not want to") })
}

var (
	sink  []byte
	hoard [][]byte
)

func recurse(n int) int { return recurse(n+1) + 1 }

type watchEvent struct {
	Type   string
	Object struct {
		Metadata struct {
			Name, ResourceVersion string
			Annotations           map[string]string
		}
		Value string
	}
}

// fold keeps, for each object, a hash over all values it ever had, and puts it
// into the results. An event that is lost, doubled or out of order shows.
func fold(ctx context.Context, _ abi.Start) error {
	sums := map[string]uint64{}
	return follow(ctx, func(e watchEvent) error {
		h := fnv.New64a()
		fmt.Fprint(h, sums[e.Object.Metadata.Name], e.Type, e.Object.Value)
		sums[e.Object.Metadata.Name] = h.Sum64()
		return put(ctx, "/results/"+e.Object.Metadata.Name, fmt.Sprint(h.Sum64()))
	})
}

// onEvent does something bad at each event but the first.
func onEvent(bad func()) guest.RunFunc {
	return func(ctx context.Context, _ abi.Start) error {
		return follow(ctx, func(e watchEvent) error {
			if e.Object.Value == "bad" {
				bad()
			}
			return put(ctx, "/results/"+e.Object.Metadata.Name, e.Object.Value)
		})
	}
}

// cache holds as many bytes as its options say in objects that have names and
// point to each other, as an informer does, and then puts the value of each object.
func cache(ctx context.Context, s abi.Start) error {
	type object struct {
		next   *object
		name   string
		labels map[string]string
	}
	size, err := strconv.Atoi(string(s.Options))
	if err != nil {
		return err
	}
	const each = 600 // bytes of an object, about
	var all *object
	for n := range size / each {
		name := fmt.Sprintf("object-%d-%x", n, uint32(n)*2654435761)
		all = &object{all, name, map[string]string{"app": name, "pod-template-hash": fmt.Sprint(n)}}
	}
	runtime.GC()
	defer runtime.KeepAlive(all)
	return onEvent(func() {})(ctx, s)
}

// litter leaves garbage at each object whose value says so, and puts how often it was
// told to collect it.
func litter(ctx context.Context, _ abi.Start) error {
	return follow(ctx, func(e watchEvent) error {
		if e.Object.Value == "litter" {
			for n := range 3 << 10 {
				sink = bytes.Repeat([]byte{byte(n + 1)}, 1<<10)
			}
		}
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return put(ctx, "/results/"+e.Object.Metadata.ResourceVersion, fmt.Sprint(stats.NumForcedGC))
	})
}

// ticker counts, and puts the count each period.
func ticker(ctx context.Context, s abi.Start) error {
	period, err := time.ParseDuration(string(bytes.Trim(s.Options, `"`)))
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		time.Sleep(period)
		if err := put(ctx, "/results/tick", fmt.Sprint(n)); err != nil {
			return err
		}
	}
}

// poller is a mirror that also ticks.
func poller(ctx context.Context, s abi.Start) error {
	failed := make(chan error, 2)
	go func() { failed <- mirror(ctx, s) }()
	go func() { failed <- ticker(ctx, s) }()
	return <-failed
}

func put(ctx context.Context, path, value string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://host"+path, bytes.NewReader([]byte(value)))
	if err != nil {
		return err
	}
	resp, err := guest.Transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("PUT %s: %s", path, resp.Status)
	}
	return nil
}

// mirror keeps the value of each object, as an informer does, and puts all of them
// into the results. A watch that ends is followed by one that lists again.
func mirror(ctx context.Context, _ abi.Start) error {
	var known, list map[string]string
	for {
		list = map[string]string{}
		err := watch(ctx, "sendInitialEvents=true&resourceVersionMatch=NotOlderThan", func(e watchEvent) error {
			into := known
			if list != nil {
				into = list
			}
			switch e.Type {
			case "DELETED":
				delete(into, e.Object.Metadata.Name)
			case "BOOKMARK":
				if e.Object.Metadata.Annotations["k8s.io/initial-events-end"] != "true" || list == nil {
					return fmt.Errorf("a bookmark that is not for it: %+v", e)
				}
				known, list = list, nil
			case "ERROR": // lists again
				return nil
			default:
				into[e.Object.Metadata.Name] = e.Object.Value
			}
			if list != nil {
				return nil
			}
			return put(ctx, "/results/all", fmt.Sprint(known)) // sorted by name
		})
		if err != nil {
			return err
		}
	}
}

// follow watches the objects, as a reflector does: it goes on from the last
// version it has seen.
func follow(ctx context.Context, f func(watchEvent) error) error {
	version := "1"
	for {
		err := watch(ctx, "resourceVersion="+version, func(e watchEvent) error {
			if e.Type == "ERROR" { // goes on from the last version, as a reflector with luck
				return put(ctx, "/results/error", "410")
			}
			version = e.Object.Metadata.ResourceVersion
			return f(e)
		})
		if err != nil {
			return err
		}
	}
}

// watch calls f with each event until the watch ends. One that is refused ends
// after a moment.
func watch(ctx context.Context, query string, f func(watchEvent) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://host/objects?watch=true&"+query, nil)
	if err != nil {
		return err
	}
	resp, err := guest.Transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		time.Sleep(5 * time.Millisecond)
		return nil
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		var e watchEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return err
		}
		if err := f(e); err != nil || e.Type == "ERROR" {
			return err
		}
	}
	return lines.Err()
}
