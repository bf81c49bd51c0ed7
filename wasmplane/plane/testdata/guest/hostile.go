package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
	"unsafe"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/guest"
)

// The controller "hostile" waits until it may begin, does what the attack that its
// options name does, writes what came of it to the log and into the results, and
// waits.
func init() {
	guest.Register("hostile", func(ctx context.Context, s abi.Start) error {
		var name string
		if err := json.Unmarshal(s.Options, &name); err != nil {
			return err
		}
		attack, ok := attacks[name]
		if !ok {
			return fmt.Errorf("there is no attack %q", name)
		}
		if err := put(ctx, "/begin", ""); err != nil {
			return err
		}
		came, err := attack(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "W0101 00:00:00.000000       1 hostile.go:1] came to: %s\n", came)
		_ = put(ctx, "/results/attack", came) // it may have no request left
		<-ctx.Done()
		return nil
	})
}

var attacks = map[string]func(context.Context) (string, error){
	"wait": func(context.Context) (string, error) { return "waits", nil },

	// Running for ever.
	"loop": func(context.Context) (string, error) {
		for {
		}
	},
	"loop with calls": func(context.Context) (string, error) {
		for time.Now().Year() > 0 {
		}
		return "", nil
	},
	"loop of polls": func(context.Context) (string, error) {
		for {
			poll(1)
		}
	},
	"thief": func(context.Context) (string, error) { // of every frame, and of the Park frame
		for b := make([]byte, 1<<10); ; {
			poll(time.Hour)
			read(b)
		}
	},
	"restless": func(context.Context) (string, error) { return restless(), nil },
	"restless while it waits": func(context.Context) (string, error) {
		begin(http.MethodGet, "/silent")
		return restless(), nil
	},

	// Memory and stack.
	"bomb": func(context.Context) (string, error) {
		for {
			hoard = append(hoard, make([]byte, 1<<20))
		}
	},
	"recursion": func(context.Context) (string, error) { return fmt.Sprint(recurse(1)), nil },

	// Ends.
	"exit": func(context.Context) (string, error) {
		fmt.Fprintln(os.Stderr, "had enough")
		os.Exit(0)
		return "", nil
	},
	"long panic": func(context.Context) (string, error) { panic(strings.Repeat("x", 1<<20)) },

	// What there is not.
	"files": func(context.Context) (string, error) {
		_, read := os.ReadFile("/etc/passwd")
		_, list := os.ReadDir("/")
		write := os.WriteFile("/tmp/x", nil, 0o600)
		_, dup := os.OpenFile("/dev/stdin", os.O_RDWR, 0)
		_, over := os.OpenFile("/given/file", os.O_RDWR, 0)
		return refusals(read, list, write, dup, over, os.Remove("/given/file"), errnoOf(pathOpen(3, 0, "etc/passwd")), errnoOf(pathOpen(4, 0, "etc/passwd"))), nil
	},
	"given files": func(context.Context) (string, error) {
		for range 100 { // none stays open
			if _, err := os.ReadFile("/given/file"); err != nil {
				return "", err
			}
		}
		info, err := os.Stat("/given/file")
		if err != nil {
			return "", err
		}
		b, err := os.ReadFile("/given/file")
		sum := 0
		for _, c := range b {
			sum += int(c)
		}
		return fmt.Sprint(info.Size(), info.Mode().IsRegular(), len(b), sum), err
	},
	"sockets": func(ctx context.Context) (string, error) {
		var d net.Dialer
		_, dial := d.DialContext(ctx, "tcp", "127.0.0.1:6443")
		_, lookup := net.DefaultResolver.LookupHost(ctx, "example.org")
		var fd uint32
		return refusals(dial, lookup, errnoOf(sockAccept(abi.MailboxFD, 0, unsafe.Pointer(&fd))), errnoOf(sockShutdown(abi.MailboxFD, 3))), nil
	},
	"environment": func(context.Context) (string, error) { return fmt.Sprint(os.Environ(), os.Args), nil },

	// Requests.
	"broken requests": func(context.Context) (string, error) {
		whole := (&abi.Request{Stream: 900, Method: http.MethodGet, URL: "/silent"}).Append(nil)
		all := [][]byte{{0}, whole[:len(whole)-1], append(bytes.Clone(whole), 0),
			binary.AppendUvarint([]byte{1}, 1<<62),                                    // the method's length
			append([]byte{1, 3, 'G', 'E', 'T', 1, '/'}, 0xff, 0xff, 0xff, 0xff, 0x0f), // the number of headers
			append([]byte{1, 3, 'G', 'E', 'T', 1, '/', 0}, 0xff, 0xff, 0xff, 0xff, 0x0f),
			(&abi.Request{Method: http.MethodGet, URL: "/silent"}).Append(nil),
			(&abi.Request{Stream: 900, Method: "BREW", URL: "/silent"}).Append(nil),
			(&abi.Request{Stream: 900, Method: http.MethodGet, URL: "/silent", Header: http.Header{"Accept": make([]string, 100_000)}}).Append(nil),
			(&abi.Request{Stream: 900, Method: http.MethodGet, URL: "/silent", Body: make([]byte, abi.MaxRequest)}).Append(nil),
		}
		var errs []error
		for _, b := range all {
			errs = append(errs, errnoOf(request(unsafe.Pointer(&b[0]), uint32(len(b)))))
		}
		errs = append(errs, errnoOf(request(unsafe.Pointer(&whole[0]), 1<<32-1)))
		if errno := request(unsafe.Pointer(&whole[0]), uint32(len(whole))); errno != abi.OK {
			return "", fmt.Errorf("a good request: %d", errno)
		}
		errs = append(errs, errnoOf(request(unsafe.Pointer(&whole[0]), uint32(len(whole))))) // the same again
		return refusals(errs...), nil
	},
	"other targets": func(context.Context) (string, error) {
		var errs []error
		for _, url := range []string{
			"https://example.org/", "http:/api", "//example.org/api", "api/v1/pods", "", "*",
			"/api/v1/../../v1-dormouse/wasm/controllers", "/api//v1/pods", "/api/v1/%2e%2e/x", "/api/v1/nodes/a%2Fproxy", "/api/v1/pods#x",
			"/v1-dormouse/wasm/controllers", "/v1-dormouse",
			"/api/v1/nodes/a/proxy/logs", "/api/v1/nodes/a/proxy", "/api/v1/namespaces/a/pods/b/exec?command=sh", "/api/v1/namespaces/a/pods/b/attach",
			"/api/v1/namespaces/a/pods/b/portforward", "/api/v1/namespaces/a/services/https:b:443/proxy/x", "/apis/a/v1/namespaces/b/cs/d/exec",
		} {
			errs = append(errs, errnoOf(begin(http.MethodGet, url)))
		}
		return refusals(errs...), nil
	},
	"headers": func(ctx context.Context) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://host/headers", nil)
		if err != nil {
			return "", err
		}
		for _, name := range []string{"Impersonate-User", "Impersonate-Group", "impersonate-uid", "Impersonate-Extra-Scopes", "Authorization", "Cookie", "Host",
			"X-Remote-User", "X-Remote-Group", "X-Forwarded-For", "Connection", "Upgrade", "Transfer-Encoding", "Content-Length", "Audit-Id"} {
			req.Header[name] = []string{"system:masters"}
		}
		resp, err := guest.Transport.RoundTrip(req)
		if err != nil {
			return "", err
		}
		return resp.Status, resp.Body.Close()
	},
	"cancel everything": func(context.Context) (string, error) {
		for id := range uint32(100_000) {
			cancel(id)
		}
		cancel(1<<32 - 1)
		return "cancelled", nil
	},
	"flood": func(ctx context.Context) (string, error) {
		for range 300 {
			if err := put(ctx, "/results/flood", "x"); err != nil {
				return "", err
			}
		}
		return "done", nil
	},
	"flood at once":  func(context.Context) (string, error) { return count(3000, "/silent", 0), nil },
	"large requests": func(context.Context) (string, error) { return count(10, "/silent", 4<<20), nil },
	"watches": func(context.Context) (string, error) {
		return count(3000, "/objects?watch=1&resourceVersion=1", 0), nil
	},
	"never reads": func(context.Context) (string, error) {
		count(1000, "/endless", 0)
		for {
		}
	},

	// Output.
	"lines": func(context.Context) (string, error) {
		for n := range 50_000 {
			fmt.Fprintf(os.Stderr, "W0101 00:00:00.000000       1 hostile.go:1] line %d\n", n)
		}
		return "written", nil
	},
	"endless line": func(context.Context) (string, error) {
		_, err := os.Stdout.Write(bytes.Repeat([]byte("x"), 8<<20))
		return "written", err
	},
}

func restless() string {
	for range 100 {
		time.Sleep(100 * time.Microsecond)
	}
	return "rested"
}

// refusals says which attempts were not refused, by their position.
func refusals(errs ...error) string {
	var done []int
	for n, err := range errs {
		if err == nil {
			done = append(done, n)
		}
	}
	if done != nil {
		return fmt.Sprint("not refused: ", done)
	}
	return "refused"
}

func errnoOf(n uint32) error {
	if n == 0 {
		return nil
	}
	return errors.New(fmt.Sprint("errno ", n))
}

var lastStream uint32 = 1 << 20 // numbers that the guest's transport does not use

// begin makes a request as no transport would.
func begin(method, url string) uint32 { return beginWith(method, url, nil) }

func beginWith(method, url string, body []byte) uint32 {
	lastStream++
	b := (&abi.Request{Stream: lastStream, Method: method, URL: url, Body: body}).Append(nil)
	return request(unsafe.Pointer(&b[0]), uint32(len(b)))
}

// count makes requests and says how many were taken.
func count(n int, url string, size int) string {
	taken, body := 0, make([]byte, size)
	for range n {
		if beginWith(http.MethodGet, url, body) == abi.OK {
			taken++
		}
	}
	return fmt.Sprint(taken, " taken")
}

//go:wasmimport dormouse request
func request(p unsafe.Pointer, n uint32) uint32

//go:wasmimport dormouse cancel
func cancel(stream uint32)

//go:wasmimport wasi_snapshot_preview1 poll_oneoff
func pollOneoff(in, out unsafe.Pointer, n uint32, count unsafe.Pointer) uint32

//go:wasmimport wasi_snapshot_preview1 fd_read
func fdRead(fd int32, iovecs unsafe.Pointer, n uint32, size unsafe.Pointer) uint32

//go:wasmimport wasi_snapshot_preview1 sock_accept
func sockAccept(fd int32, flags uint32, out unsafe.Pointer) uint32

//go:wasmimport wasi_snapshot_preview1 sock_shutdown
func sockShutdown(fd int32, how uint32) uint32

//go:wasmimport wasi_snapshot_preview1 path_open
func wasiPathOpen(dir, flags int32, path unsafe.Pointer, n, open uint32, rights, inherit uint64, fdflags uint32, fd unsafe.Pointer) uint32

func pathOpen(dir, flags int32, path string) uint32 {
	var fd uint32
	return wasiPathOpen(dir, flags, unsafe.Pointer(unsafe.StringData(path)), uint32(len(path)), 0, 1<<64-1, 1<<64-1, 0, unsafe.Pointer(&fd))
}

// poll waits for the mailbox or a timer, as the Go scheduler does.
func poll(d time.Duration) {
	var in [96]byte
	var out [64]byte
	var n uint32
	binary.LittleEndian.PutUint64(in[24:], uint64(d))
	in[48+8] = 1
	binary.LittleEndian.PutUint32(in[48+16:], abi.MailboxFD)
	pollOneoff(unsafe.Pointer(&in), unsafe.Pointer(&out), 2, unsafe.Pointer(&n))
}

// read takes from the mailbox what is there.
func read(b []byte) {
	iovec := [2]uint32{uint32(uintptr(unsafe.Pointer(&b[0]))), uint32(len(b))}
	var n uint32
	fdRead(abi.MailboxFD, unsafe.Pointer(&iovec), 1, unsafe.Pointer(&n))
}
