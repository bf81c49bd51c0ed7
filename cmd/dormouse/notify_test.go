package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestNotify(t *testing.T) {
	name := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	n, err := takeNotifySocket()
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := os.LookupEnv("NOTIFY_SOCKET"); ok {
		t.Errorf("NOTIFY_SOCKET is still %q", v)
	}
	if err := n.send("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if k, err := l.Read(b); err != nil || string(b[:k]) != "READY=1" {
		t.Errorf("got %q, %v", b[:k], err)
	}
	if again, err := takeNotifySocket(); err != nil || again != "" || again.send("READY=1") != nil {
		t.Errorf("without systemd: %q, %v", again, err)
	}
}
