package parity

import "slices"

// trials are all cases. The slow ones come first: they wait while others work.
var trials = slices.Concat(silences, customResources, workloads, jobs, owners, networks, nodes, storage, certificates)
