package plane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

const (
	// lingerForResponse is how long an idle guest with a request under way waits
	// in place. The API server answers most requests within some milliseconds.
	lingerForResponse = 20 * time.Millisecond
	// lingerForTimer is the shortest timer that is worth leaving the guest for.
	lingerForTimer = 2 * time.Millisecond
)

// Request implements runtime.Host.
func (g *guest) Request(encoded []byte) uint32 {
	errno, err := g.accept(encoded)
	if err != nil {
		g.refused.Do(func() {
			g.log.Warnf("refused a request: %v (more such lines are left out for %s)", err, complaintPeriod)
		})
	}
	return errno
}

// accept begins an exchange, or says why not.
func (g *guest) accept(encoded []byte) (errno uint32, err error) {
	r, err := abi.DecodeRequest(encoded)
	if err != nil {
		return abi.ErrFormat, err
	}
	x, err := g.newExchange(r)
	if err != nil {
		return abi.ErrFormat, err
	}
	x.size = len(encoded)
	if g.requests.Tokens() < 1 {
		g.slowed.Do(func() { g.log.Warnf("asks too often; slowed down to %d requests a second", requestRate) })
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, taken := g.exchanges[x.id]; taken {
		return abi.ErrFormat, fmt.Errorf("stream %d is in use", x.id)
	}
	if len(g.exchanges) >= maxExchanges {
		return abi.ErrLimit, fmt.Errorf("%d are under way", maxExchanges)
	}
	if g.asked+x.size > maxRequestBytes {
		return abi.ErrLimit, fmt.Errorf("those under way have more than %d MiB", maxRequestBytes>>20)
	}
	if x.method != http.MethodGet && !g.marked {
		// Before the API server sees it: after a crash the snapshot must not be
		// taken for what the controller knows.
		if err := g.plane.marks.Set(g.Name); err != nil {
			return abi.ErrLimit, err
		}
		g.marked = true
	}
	g.exchanges[x.id] = x
	g.underWay++
	g.asked += x.size
	g.launch(x)
	return abi.OK, nil
}

// Cancel implements runtime.Host.
func (g *guest) Cancel(id uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if x := g.exchanges[id]; x != nil {
		g.close(x)
	}
}

// Log implements runtime.Host.
func (g *guest) Log(line string) {
	level, message, fields := parseLog(line)
	if g.log.Logger.IsLevelEnabled(level) && g.output.admit(g.log, line, time.Now()) {
		maps.DeleteFunc(fields, func(key string, _ any) bool { return g.log.Data[key] != nil }) // who it is, is not for the guest to say
		g.log.WithFields(fields).Log(level, message)
	}
}

// Clock implements runtime.Host.
func (g *guest) Clock() (wall, monotonic time.Duration) {
	return time.Duration(time.Now().UnixNano()), g.plane.clock.now()
}

// Random implements runtime.Host.
func (g *guest) Random(b []byte) { _, _ = rand.Read(b) } // never fails, see crypto/rand

// Linger implements runtime.Host.
func (g *guest) Linger(next time.Duration) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	linger := time.Duration(0)
	switch {
	case g.stopping:
	case g.underWay > 0:
		linger = lingerForResponse
	case next >= 0 && next <= lingerForTimer:
		linger = lingerForTimer
	}
	if next >= 0 && next <= linger && !g.timers.Allow() {
		return 0 // it is parked, and its timer is late
	}
	return linger
}

// launch starts an exchange's goroutine; guest.mu is held.
func (g *guest) launch(x *exchange) {
	x.ctx, x.cancel = context.WithCancel(g.base)
	if x.watch {
		context.AfterFunc(x.ctx, func() { g.plane.feeds.leave(x) })
	}
	g.spawn(x, x.run)
}

// spawn runs an exchange to its end, unless a feed takes over; guest.mu is held.
func (g *guest) spawn(x *exchange, run func() error) {
	g.streams.Go(func() {
		err := run()
		if errors.Is(err, errFollows) {
			return
		}
		if x.ctx.Err() == nil {
			x.end(err)
		}
		g.finish(x)
	})
}

func (g *guest) finish(x *exchange) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.close(x)
}

// close ends an exchange once; guest.mu is held.
func (g *guest) close(x *exchange) {
	if x.closed {
		return
	}
	x.closed = true
	if !x.settled {
		g.answered()
	}
	for _, w := range x.waiting {
		g.waitingBytes -= len(w.raw)
	}
	x.waiting = nil
	g.asked -= x.size
	x.cancel()
	delete(g.exchanges, x.id)
}

// settle says that a watch is open; it may stay silent from now on.
func (g *guest) settle(x *exchange) {
	if x.release != nil {
		x.release()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !x.closed && !x.settled {
		x.settled = true
		g.answered()
	}
}

// answered notes that one exchange less is under way; guest.mu is held.
func (g *guest) answered() {
	if g.underWay--; g.underWay == 0 {
		poke(g.notify) // the guest may be put to sleep now
	}
}
