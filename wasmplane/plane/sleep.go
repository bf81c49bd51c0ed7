package plane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

const (
	// worthCollecting is by how many bytes a guest must have grown since its garbage
	// was collected last for that to be done before it is saved. It takes some ten
	// milliseconds, as the base image is looked through too; without, the next wake
	// takes longer.
	worthCollecting = 256 << 10

	// saveRetry is the pause after a snapshot could not be written.
	saveRetry = 30 * time.Second
)

// What may be done before a guest is saved.
const (
	asItIs    = false // there is no time for anything
	collected = true  // its garbage is collected, if there may be much of it
)

// sleep saves the guest and releases its memory. It returns errBusy where the
// guest has something to do.
func (g *guest) sleep(collect bool) error {
	if g.inst == nil {
		return nil
	}
	if _, err := g.head(); err != nil {
		return err
	}
	if collect {
		var err error
		if collect, err = g.collect(); err != nil {
			if g.inst != nil { // or it ended
				g.notSaved(err)
			}
			return err
		}
	}
	head, err := g.head()
	if err != nil {
		return err
	}
	began := time.Now()
	dirty, err := g.inst.Dirty()
	size := int64(0)
	pages := func(yield func(int, []byte) bool) {
		size = 0 // they may be gone through more than once
		for k, delta := range dirty {
			size += int64(runtime.PageSize)
			if !yield(k, delta) {
				return
			}
		}
	}
	if err == nil {
		head.Memory = g.inst.MemorySize()
		head.Globals, err = g.inst.Globals()
	}
	written := 0
	if err == nil {
		written, err = g.plane.store.Save(g.Name, head, g.plane.clock.saved(), pages)
	}
	if err != nil {
		g.notSaved(err)
		return err
	}
	g.plane.noteSave(g.Name, nil)
	g.plane.metrics.saveSeconds.Observe(time.Since(began).Seconds())
	g.plane.metrics.written.Add(float64(written))
	if err := g.plane.marks.Clear(g.Name); err != nil {
		g.log.Warn(err) // the next start is cold, that is all
	}
	if collect {
		g.lean = size
	}
	stored := g.plane.store.Size(g.Name)
	now := time.Now()
	g.mu.Lock()
	g.marked = false
	g.sleptAt = now
	g.stats.SnapshotBytes = stored
	g.stats.SnapshotAt = &now
	g.stats.WrittenBytes += int64(written)
	if !g.mailbox.Empty() { // needed again while it was saved
		g.warm = adapt(g.warm, 0, g.plane.config.IdleTimeout)
		g.mu.Unlock()
		return errBusy
	}
	g.state, g.quiet = Asleep, head.Quiet
	g.stats.ResidentBytes = 0
	g.mu.Unlock()
	g.inst.Close()
	g.inst = nil
	g.log.WithFields(logrus.Fields{"written": written, "took": time.Since(began).Round(10 * time.Microsecond)}).Debug("asleep")
	return nil
}

// notSaved says that the guest has to stay in memory for a while.
func (g *guest) notSaved(err error) {
	g.plane.noteSave(g.Name, err)
	g.saveAfter = time.Now().Add(saveRetry)
}

// collect has the guest collect its garbage, if it has grown by much since that was
// done last: dead objects would be saved, and restored, like any others. It reports
// whether it was done.
func (g *guest) collect() (bool, error) {
	dirty, err := g.inst.Dirty()
	if err != nil {
		return false, err
	}
	size := int64(0)
	for range dirty {
		size += int64(runtime.PageSize)
	}
	if size < g.lean+worthCollecting {
		return false, nil
	}
	g.mailbox.Push(abi.FrameCollect, 0, nil)
	return true, g.step()
}

// head describes the guest as it is, if it has nothing to do. From here to the
// end of the save nothing reaches its memory: only loop runs it.
func (g *guest) head() (snapshot.Head, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.underWay > 0 || !g.mailbox.Empty() {
		return snapshot.Head{}, errBusy
	}
	head := snapshot.Head{Generation: g.plane.host.Datastore.Generation, Start: g.startSum, NextTimer: g.nextTimer, Quiet: g.isQuiet()}
	g.fillStreams(&head)
	return head, nil
}

// fillStreams describes the open watches; guest.mu is held.
func (g *guest) fillStreams(head *snapshot.Head) {
	head.Streams, head.Revision = nil, 0
	head.Heartbeats = slices.Sorted(maps.Keys(g.heartbeats))
	for _, id := range slices.Sorted(maps.Keys(g.exchanges)) {
		x := g.exchanges[id]
		head.Streams = append(head.Streams, x.snapshotStream())
		if rv, err := strconv.ParseInt(x.delivered, 10, 64); err == nil {
			head.Revision = max(head.Revision, rv)
		}
	}
}

// instantiate makes an instance with so many bytes of memory, for what is restored, or one that begins with 0.
func (g *guest) instantiate(size int64) (*runtime.Instance, error) {
	return g.plane.config.Code.Instantiate(runtime.Config{
		Host:    g,
		Mailbox: g.mailbox,
		Size:    size,
		Memory:  g.MemoryLimit,
		Run:     g.RunLimit,
		Files:   g.files,
	})
}

// restore makes an instance of the snapshot.
func (g *guest) restore() error {
	err := g.plane.store.Load(g.Name, func(head snapshot.Head, pages snapshot.Pages) error {
		if g.MemoryLimit > 0 && head.Memory > g.MemoryLimit {
			return fmt.Errorf("%d bytes of memory, more than the limit of %d", head.Memory, g.MemoryLimit)
		}
		inst, err := g.instantiate(head.Memory)
		if err != nil {
			return err
		}
		if err := g.fill(inst, head, pages); err != nil {
			inst.Close()
			return err
		}
		g.inst = inst
		return nil
	})
	if err != nil {
		return err
	}
	if g.startedAt.IsZero() {
		g.startedAt = time.Now()
	}
	return nil
}

func (g *guest) fill(inst *runtime.Instance, head snapshot.Head, pages snapshot.Pages) error {
	restored, err := inst.Restore(pages)
	if err != nil {
		return err
	}
	if g.lean == 0 { // it is of an earlier run of the plane
		g.lean = restored
	}
	inst.SetNextTimer(head.NextTimer, head.NextTimer >= 0)
	return inst.SetGlobals(head.Globals)
}

// resume decides whether the snapshot on disk, if there is one, can be used.
func (g *guest) resume(ctx context.Context) bool {
	head, err := g.plane.store.Head(g.Name)
	switch {
	case errors.Is(err, snapshot.ErrNotFound):
		return false
	case err != nil:
	case g.plane.marks.InDoubt(g.Name):
		err = errors.New("after a crash or a power cut it may be older than what the controller did")
	case head.Start != g.startSum:
		err = errors.New("its options or its declaration are others now")
	case head.Generation != g.plane.host.Datastore.Previous:
		err = errors.New("it was not saved in the run before this one")
	case head.Revision > g.plane.host.Datastore.Revision:
		err = fmt.Errorf("it has seen revision %d, the datastore only %d", head.Revision, g.plane.host.Datastore.Revision)
	}
	if err == nil {
		head.Generation = g.plane.host.Datastore.Generation
		err = g.plane.store.SaveHead(g.Name, head, g.plane.clock.saved())
	}
	if err == nil {
		err = g.adopt(head)
	}
	if err != nil {
		g.log.Infof("snapshot discarded, starting cold: %v", err)
		g.discard()
		return false
	}
	err = g.caughtUp(ctx)
	if ctx.Err() != nil {
		return true // what was saved is as good for the next start
	}
	if err != nil {
		// Nothing unusual: the cluster has changed while the server was stopped,
		// or did as it started.
		g.log.Debugf("starting cold: %v", err)
		g.discard()
		return false
	}
	return true
}

// adopt takes over what a snapshot says besides memory.
func (g *guest) adopt(head snapshot.Head) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range head.Streams {
		x, err := g.resumeExchange(s)
		if err != nil {
			g.exchanges = map[uint32]*exchange{}
			return err
		}
		g.exchanges[x.id] = x
	}
	g.state, g.nextTimer, g.quiet = Asleep, head.NextTimer, head.Quiet
	for _, uid := range head.Heartbeats {
		g.heartbeats[uid] = time.Now() // it may have fallen silent since; that will show
	}
	g.stats.SnapshotBytes = g.plane.store.Size(g.Name)
	return nil
}

// openStreams starts the watches of an adopted snapshot.
func (g *guest) openStreams() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, x := range g.exchanges {
		g.launch(x)
	}
}

// discard forgets the snapshot and everything that belongs to that life.
func (g *guest) discard() {
	g.mu.Lock()
	g.cancel()
	for _, x := range g.exchanges {
		if x.cancel != nil {
			g.close(x)
		}
	}
	g.exchanges = map[uint32]*exchange{}
	g.underWay = 0
	g.mu.Unlock()
	g.streams.Wait() // nobody delivers to the next life
	g.mailbox.Reset()
	err := g.plane.store.Drop(g.Name)
	g.plane.noteSave(g.Name, err)
	if err == nil {
		if err := g.plane.marks.Clear(g.Name); err != nil {
			g.log.Warn(err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.base, g.cancel = context.WithCancel(context.Background())
	g.state, g.marked, g.nextTimer, g.cause, g.sleptAt = Cold, false, -1, cause{}, time.Time{}
	g.stats.SnapshotBytes, g.stats.ResidentBytes = 0, 0
}

// saveStreams writes how far the watches of a sleeping guest have come.
func (g *guest) saveStreams(now snapshot.Head) {
	head, err := g.plane.store.Head(g.Name)
	if err == nil {
		head.Streams, head.Revision, head.Heartbeats = now.Streams, now.Revision, now.Heartbeats
		err = g.plane.store.SaveHead(g.Name, head, g.plane.clock.saved())
	}
	if err != nil {
		g.log.Warnf("how far the watches have come was not saved: %v", err)
	}
}
