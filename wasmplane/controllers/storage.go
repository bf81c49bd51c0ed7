package controllers

// storageVersionGarbageCollector ends at once, unless its feature gate,
// StorageVersionAPI, is on.
var storageVersionGarbageCollector = Declaration{
	Name:        "storageversion-garbage-collector-controller",
	Identity:    serviceAccount + "storage-version-garbage-collector",
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var storageVersionMigrator = Declaration{
	Name:     "storage-version-migrator-controller",
	Identity: serviceAccount + "storage-version-migrator-controller",
	// Besides migrations it watches what is being migrated, whatever that is. In
	// kube-controller-manager it reads that from the garbage collector's memory. Its
	// role allows it to list and to patch everything.
	Resources:   []string{"*"},
	Grants:      []string{"*"},
	Wait:        map[string]Events{"*": Any, "storageversionmigrations.storagemigration.k8s.io": 0},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
