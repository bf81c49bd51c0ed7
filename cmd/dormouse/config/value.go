package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// value is a flag of one type. Its errors say what would be accepted.
type value[T any] struct {
	p      *T
	parse  func(string) (T, error)
	format func(T) string
	kind   string // what --help shows
}

func (v *value[T]) Set(s string) error {
	x, err := v.parse(s)
	if err == nil {
		*v.p = x
	}
	return err
}

func (v *value[T]) String() string {
	if v.p == nil {
		return "" // pflag asks a zero value what its default is
	}
	return v.format(*v.p)
}

func (v *value[T]) Type() string { return v.kind }

// list is a repeatable flag. The first time it is set it replaces what was there.
type list struct {
	p       *[]string
	split   bool // at commas
	changed bool
}

func (l *list) Set(s string) error {
	if !l.changed {
		*l.p, l.changed = nil, true
	}
	items := []string{s}
	if l.split {
		items = strings.Split(s, ",")
	}
	for _, item := range items {
		if err := l.Append(item); err != nil {
			return err
		}
	}
	return nil
}

// Append implements pflag.SliceValue.
func (l *list) Append(s string) error {
	if s = strings.TrimSpace(s); s == "" {
		return fmt.Errorf("an entry is empty")
	}
	*l.p = append(*l.p, s)
	return nil
}

// Replace implements pflag.SliceValue.
func (l *list) Replace(items []string) error {
	*l.p, l.changed = nil, true
	for _, item := range items {
		if err := l.Append(item); err != nil {
			return err
		}
	}
	return nil
}

// GetSlice implements pflag.SliceValue.
func (l *list) GetSlice() []string { return *l.p }

func (l *list) String() string {
	if l.p == nil {
		return ""
	}
	return strings.Join(*l.p, ",")
}

func (l *list) Type() string { return "LIST" }

func identity(s string) string { return s }

func parseText(s string) (string, error) {
	if s == "" {
		return "", fmt.Errorf("it is empty")
	}
	return s, nil
}

func parsePath(s string) (string, error) {
	if s == "" {
		return "", fmt.Errorf("it is empty")
	}
	return filepath.Clean(s), nil
}

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("not true or false")
}

func formatBool(b bool) string { return strconv.FormatBool(b) }

func parsePort(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("not a port, a number from 1 to 65535")
	}
	return n, nil
}

func formatInt(n int) string { return strconv.Itoa(n) }

func parseIP(s string) (net.IP, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return nil, fmt.Errorf("not an IP address, such as 192.0.2.10")
	}
	return net.IP(a.AsSlice()), nil
}

func formatIP(ip net.IP) string {
	if ip == nil {
		return ""
	}
	return ip.String()
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("not an IP address, such as 10.43.0.10")
	}
	return a, nil
}

func formatAddr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("not a range of addresses, such as 10.42.0.0/16")
	}
	if p != p.Masked() {
		return p, fmt.Errorf("not the start of a range, which would be %s", p.Masked())
	}
	if p.Addr().BitLen()-p.Bits() < 8 {
		return p, fmt.Errorf("a range of fewer than 256 addresses")
	}
	return p, nil
}

func parseMode(s string) (os.FileMode, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0o"), 8, 32)
	if err != nil || n > 0o777 {
		return 0, fmt.Errorf("not a file mode in octal, such as 0600 or 0644")
	}
	return os.FileMode(n), nil
}

func formatMode(m os.FileMode) string { return fmt.Sprintf("%04o", m.Perm()) }

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)

func parseNodeName(s string) (string, error) {
	if len(s) > 253 || !label.MatchString(s) {
		return "", fmt.Errorf("not a node name: lower-case letters, digits, - and . between them, at most 253")
	}
	return s, nil
}

func parseDomain(s string) (string, error) {
	if len(s) > 253 || !label.MatchString(strings.TrimSuffix(s, ".")) {
		return "", fmt.Errorf("not a domain, such as cluster.local")
	}
	return s, nil
}

func parseControllerMode(s string) (string, error) {
	if s != ModeWasm && s != ModeNative {
		return "", fmt.Errorf("neither %s nor %s", ModeWasm, ModeNative)
	}
	return s, nil
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("not a duration, such as 2s or 1m30s")
	}
	return d, nil
}

var size = regexp.MustCompile(`^([0-9]{1,12})\s*([KMG]i?)?B?$`)

func parseSize(s string) (int64, error) {
	m := size.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("not a size in bytes, such as 64MiB or 1GiB")
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("not a size in bytes: %w", err)
	}
	unit := map[string]int64{"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}[m[2]]
	if n > (1<<62)/unit {
		return 0, fmt.Errorf("more than any machine has")
	}
	return n * unit, nil
}

func formatSize(n int64) string {
	switch {
	case n >= 1<<30 && n%(1<<30) == 0:
		return strconv.FormatInt(n>>30, 10) + "GiB"
	case n >= 1<<20 && n%(1<<20) == 0:
		return strconv.FormatInt(n>>20, 10) + "MiB"
	}
	return strconv.FormatInt(n, 10)
}
