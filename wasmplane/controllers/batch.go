package controllers

var job = Declaration{
	Name:      "job-controller",
	Identity:  serviceAccount + "job-controller",
	Resources: []string{"jobs.batch", "pods"},
	// Also without a Job: from pods that one has left behind it takes the finalizer.
	Owned:       map[string][]string{"pods": {"Job"}},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var cronJob = Declaration{
	Name:      "cronjob-controller",
	Identity:  serviceAccount + "cronjob-controller",
	Resources: []string{"jobs.batch", "cronjobs.batch"},
	Owned:     map[string][]string{"jobs.batch": {"CronJob"}},
	Without:   onlyWith("cronjobs.batch", "jobs.batch"),
	// Each CronJob has a timer, for its next start. That is to the second.
	TimersFor:   []string{"cronjobs.batch"},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}

var ttlAfterFinished = Declaration{
	Name:      "ttl-after-finished-controller",
	Identity:  serviceAccount + "ttl-after-finished-controller",
	Resources: []string{"jobs.batch"},
	Wait:      map[string]Events{"jobs.batch": Terminating | Deleted},
	// Where the field is taken away, the timer finds so before it deletes anything.
	Having: map[string][]Field{"jobs.batch": {
		{Name: "spec.ttlSecondsAfterFinished", Path: []int{2, 8}},
	}},
	TimersFor:   []string{"jobs.batch"},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
