package plane

import (
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

// What a guest may ask of the host, besides the memory and the running time of its
// declaration. A controller that does its work comes nowhere near any of it; one
// that goes wrong must not take the server and the other guests along.
const (
	// maxExchanges bounds the requests that a guest may have under way. The
	// garbage collector watches every resource of the cluster, each with one.
	maxExchanges = 2048

	// maxRequestBytes bounds what the requests under way take together. A controller
	// has some dozens, of a few kilobytes each.
	maxRequestBytes = 16 << 20

	// maxResponses bounds the responses that are under way together, and the watches
	// that have not come to the end of their list; further requests wait. Each holds
	// up to 300 KiB in the host if the guest does not read.
	maxResponses = 64

	// requestRate and requestBurst bound how often a guest may ask: a burst is what
	// a controller needs for some thousand objects at once, and the rate after it is
	// several times that of upstream's clients. What is more waits.
	requestRate  = 200 // a second
	requestBurst = 5000

	// timerRate and timerBurst bound how often a guest runs because of its own
	// timers. Upstream's shortest loops have a period of 100 ms; a timer that is 20 ms
	// late hurts nobody.
	timerRate  = 50 // a second
	timerBurst = 1000

	// maxWaiting bounds the events that wait for a guest to wake, in bytes: about a
	// thousand pods. Guests for whom the same events wait share them.
	maxWaiting = 4 << 20

	// maxOutput bounds what a guest writes to the log within outputPeriod, in bytes
	// with outputLine for what is around a line. The dump of a panic is below it.
	maxOutput    = 128 << 10
	outputPeriod = time.Minute
	outputLine   = 128

	// complaintPeriod is the least time between two log lines about the same kind of
	// misbehaviour.
	complaintPeriod = time.Minute

	// maxURL bounds the URL of a request, in bytes, as web servers do.
	maxURL = 8 << 10
)

// limits are what of it is counted for a guest.
type limits struct {
	requests  *rate.Limiter
	responses *semaphore.Weighted
	lists     *semaphore.Weighted // watches until the end of their list; these may take long
	timers    *rate.Limiter
	refused   rate.Sometimes
	slowed    rate.Sometimes

	// Owned by loop.
	output     output
	timersFrom time.Time // no run for a timer before
}

func newLimits() limits {
	return limits{
		requests:  rate.NewLimiter(requestRate, requestBurst),
		responses: semaphore.NewWeighted(maxResponses),
		lists:     semaphore.NewWeighted(maxResponses),
		timers:    rate.NewLimiter(timerRate, timerBurst),
		refused:   rate.Sometimes{Interval: complaintPeriod},
		slowed:    rate.Sometimes{Interval: complaintPeriod},
	}
}

// output bounds what a guest writes to the log.
type output struct {
	since time.Time
	bytes int
	left  int // lines left out
}

// admit reports whether a line is to be logged, and says so when lines begin to be
// left out, and how many were.
func (o *output) admit(log *logrus.Entry, line string, now time.Time) bool {
	if now.Sub(o.since) >= outputPeriod {
		if o.left > 0 {
			log.Warnf("%d lines of the controller were left out", o.left)
		}
		*o = output{since: now}
	}
	if o.bytes >= maxOutput {
		o.left++
		return false
	}
	if o.bytes += len(line) + outputLine; o.bytes >= maxOutput {
		log.Warnf("the controller writes too much; its lines are left out for up to %s", outputPeriod)
	}
	return true
}

// allowedMethods are those of the Kubernetes API.
var allowedMethods = []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}

// allowedHeaders are all that a guest may say about a request. Who it is, is not
// for the guest to say.
var allowedHeaders = []string{"Accept", "Content-Type", "User-Agent"}

// saysWho reports whether a header is about who makes a request.
func saysWho(header string) bool {
	header = http.CanonicalHeaderKey(header)
	return header == "Authorization" || strings.HasPrefix(header, "Impersonate-") || strings.HasPrefix(header, "X-Remote-")
}

// ownPaths begins the paths that the server serves beside the API.
const ownPaths = "/v1-dormouse"

// tunnels are subresources behind which the API server passes a request on to a
// node, a pod or a service. No controller needs them, and a guest reaches nothing
// but the API.
var tunnels = []string{"proxy", "exec", "attach", "portforward"}

// target parses the URL of a request, and refuses what is not plainly a path of the
// API. What the guest may do there the API server decides.
func target(raw string) (*url.URL, error) {
	if len(raw) > maxURL {
		return nil, fmt.Errorf("URL of %d bytes, at most %d are allowed", len(raw), maxURL)
	}
	if !strings.HasPrefix(raw, "/") {
		return nil, fmt.Errorf("URL %q is not a path", raw)
	}
	u, err := url.ParseRequestURI(raw)
	if err != nil {
		return nil, err
	}
	if u.RawPath != "" || u.Path != "/" && path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/") {
		return nil, fmt.Errorf("URL %q can be read in two ways", raw)
	}
	if strings.HasPrefix(u.Path, ownPaths) {
		return nil, fmt.Errorf("URL %q is not of the API", raw)
	}
	if sub := subresource(u.Path); slices.Contains(tunnels, sub) {
		return nil, fmt.Errorf("URL %q leads out of the API (%s)", raw, sub)
	}
	return u, nil
}

// subresource is the part of a path that names one, "" if there is none.
func subresource(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	group := 2 // api/VERSION
	if parts[0] == "apis" {
		group = 3 // apis/GROUP/VERSION
	}
	if len(parts) < group+3 {
		return ""
	}
	parts = parts[group:]
	if parts[0] == "namespaces" && len(parts) > 3 {
		parts = parts[2:] // the namespace is not the object
	}
	if len(parts) < 3 {
		return ""
	}
	return parts[2]
}
