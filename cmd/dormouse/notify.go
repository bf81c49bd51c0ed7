package main

import (
	"fmt"
	"net"
	"os"
)

// notifier tells systemd about our state, if it asked to be told.
type notifier string

// takeNotifySocket returns where systemd listens. The variable is unset so that no child process can speak
// for us.
func takeNotifySocket() (notifier, error) {
	n := notifier(os.Getenv("NOTIFY_SOCKET"))
	if err := os.Unsetenv("NOTIFY_SOCKET"); err != nil {
		return "", fmt.Errorf("unsetting NOTIFY_SOCKET: %w", err)
	}
	return n, nil
}

// send sends a state such as "READY=1". Without a listener it does nothing.
func (n notifier) send(state string) error {
	if n == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: string(n), Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling systemd %s: %w", state, err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("telling systemd %s: %w", state, err)
	}
	return nil
}
