package datastore

import (
	"context"

	"github.com/k3s-io/kine/pkg/logstructured"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// startLater has watches begin where something happened to their keys. kine reads for each watch every change of any
// key since the revision that it is asked to begin from, with what was before, and then leaves out those of other keys.
// Who watches what seldom changes asks for an old revision each time: after a burst each of these watches, some sixty in
// five minutes, read tens of megabytes.
func startLater(log logstructured.Log) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		return handler(srv, &watchStream{stream, log})
	}
}

type watchStream struct {
	grpc.ServerStream
	log logstructured.Log
}

func (s *watchStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if r, ok := m.(*etcdserverpb.WatchRequest); ok && r.GetCreateRequest() != nil {
		moveOn(s.Context(), s.log, r.GetCreateRequest())
	}
	return nil
}

// moveOn has a watch begin with the first change of its keys, or at present if there is none. It leaves alone a watch
// that cannot begin where it is to, as when what was before has been compacted: kine says why.
func moveOn(ctx context.Context, log logstructured.Log, r *etcdserverpb.WatchCreateRequest) {
	if r.StartRevision <= 1 {
		return
	}
	batch, err := log.After(ctx, string(r.Key), string(r.RangeEnd), r.StartRevision-1, 1)
	if err != nil {
		return
	}
	first := batch.CurrentRev + 1
	if len(batch.Events) > 0 {
		first = batch.Events[0].KV.ModRevision
	}
	r.StartRevision = max(r.StartRevision, first)
}
