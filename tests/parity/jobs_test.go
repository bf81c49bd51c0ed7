package parity

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

var jobs = []trial{
	{"job-completions", "job-controller", jobCompletions},
	{"job-backoff", "job-controller", jobBackoff},
	{"job-indexed", "job-controller", jobIndexed},
	{"job-index-backoff", "job-controller", jobIndexBackoff},
	{"job-failure-policy", "job-controller", jobFailurePolicy},
	{"job-success-policy", "job-controller", jobSuccessPolicy},
	{"job-suspend", "job-controller", jobSuspend},
	{"job-deadline", "job-controller", jobDeadline},
	{"job-ttl", "ttl-after-finished-controller garbage-collector-controller job-controller", jobTTL},
	{"job-finalizers", "job-controller garbage-collector-controller", jobFinalizers},
	{"cronjob-catch-up", "cronjob-controller job-controller", cronJobCatchUp},
	{"cronjob-concurrency", "cronjob-controller job-controller garbage-collector-controller", cronJobConcurrency},
	{"cronjob-history", "cronjob-controller job-controller garbage-collector-controller", cronJobHistory},
}

// job creates a Job whose pods end by themselves with an exit code, "" for never.
func (r *run) job(name, spec, exit string) *object {
	r.Helper()
	annotations := ""
	if exit != "" {
		annotations = fmt.Sprintf("%s: %q", hollow.Exit, exit)
	}
	return r.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: %s}
spec: {%s, template: {metadata: {annotations: {%s}}, spec: {restartPolicy: Never, containers: [{name: main, image: none}]}}}`, name, spec, annotations)
}

// exit makes the running pods of a job's index end.
func (r *run) exit(index, code int) {
	r.Helper()
	pods := r.counted(1, "pods", fmt.Sprintf("batch.kubernetes.io/job-completion-index=%d", index), "status: {phase: Running}")
	r.patch("pods/"+pods[0].GetName(), "metadata: {annotations: {%s: '%d'}}", hollow.Exit, code)
}

// noFinalizers says that no pod is kept for a Job's count any more.
func (r *run) noFinalizers(pods int) {
	r.Helper()
	r.count(pods, "pods", "", "metadata: {finalizers: null, deletionTimestamp: null}")
}

func jobCompletions(r *run) {
	j := r.job("work", "completions: 5, parallelism: 2", "")
	r.reaches("jobs/work", `
metadata: {generation: 1}
spec: {completionMode: NonIndexed, selector: {matchLabels: {batch.kubernetes.io/controller-uid: %s}}}
status: {active: 2, ready: 2, startTime: "*", completionTime: null, terminating: 0}`, j.GetUID())
	r.counted(2, "pods", "", `
metadata:
  labels: {batch.kubernetes.io/job-name: work, job-name: work, batch.kubernetes.io/controller-uid: %s}
  finalizers: [batch.kubernetes.io/job-tracking]
  ownerReferences: %s`, j.GetUID(), ownedBy(j))
	r.eventually("all pods have ended", func(ctx context.Context) error {
		for _, p := range r.list("pods", "") {
			if p.GetAnnotations()[hollow.Exit] == "" {
				r.patch("pods/"+p.GetName(), "metadata: {annotations: {%s: '0'}}", hollow.Exit)
			}
		}
		return match("succeeded", int64(5), field(r.get("jobs/work"), "status", "succeeded"))
	})
	r.want("jobs/work", `
status:
  active: null
  failed: null
  ready: 0
  terminating: 0
  succeeded: 5
  completionTime: "*"
  uncountedTerminatedPods: {}
  conditions:
  - {type: SuccessCriteriaMet, status: "True", reason: CompletionsReached}
  - {type: Complete, status: "True", reason: CompletionsReached}`)
	r.noFinalizers(5)
}

func jobBackoff(r *run) {
	r.job("work", "backoffLimit: 1", "3")
	r.want("jobs/work", `
status:
  active: null
  succeeded: null
  failed: 2
  completionTime: null
  conditions:
  - {type: FailureTarget, status: "True", reason: BackoffLimitExceeded}
  - {type: Failed, status: "True", reason: BackoffLimitExceeded}`)
	r.count(2, "pods", "", "{metadata: {finalizers: null}, status: {phase: Failed}}")
	r.event("Job", "work", "BackoffLimitExceeded", "")
}

func jobIndexed(r *run) {
	r.job("work", "completions: 4, parallelism: 2, completionMode: Indexed", "")
	for i := range 2 {
		r.counted(1, "pods", fmt.Sprintf("batch.kubernetes.io/job-completion-index=%d", i), `
metadata: {generateName: work-%[1]d-, annotations: {batch.kubernetes.io/job-completion-index: "%[1]d"}}
spec: {hostname: work-%[1]d}`, i)
	}
	r.exit(1, 0)
	r.reaches("jobs/work", `status: {succeeded: 1, completedIndexes: "1", active: 2}`)
	r.exit(2, 0)
	r.reaches("jobs/work", `status: {succeeded: 2, completedIndexes: "1,2", active: 2}`)
	// Fewer indexes, and less at the same time.
	r.patch("jobs/work", "spec: {completions: 3, parallelism: 3}")
	r.reaches("jobs/work", `status: {active: 1, succeeded: 2, completedIndexes: "1,2"}`)
	r.exit(0, 0)
	r.want("jobs/work", `
status: {active: null, succeeded: 3, failed: null, completedIndexes: 0-2, conditions: [{type: Complete, status: "True"}]}`)
	r.count(3, "pods", "batch.kubernetes.io/job-completion-index in (0,1,2)", "{metadata: {finalizers: null}, status: {phase: Succeeded}}")
}

func jobIndexBackoff(r *run) {
	r.job("work", "completions: 3, parallelism: 3, completionMode: Indexed, backoffLimitPerIndex: 0, maxFailedIndexes: 2", "")
	r.exit(1, 7)
	r.reaches("jobs/work", `status: {failed: 1, failedIndexes: "1", active: 2}`)
	r.exit(0, 0)
	r.exit(2, 0)
	r.want("jobs/work", `
status:
  succeeded: 2
  failed: 1
  completedIndexes: 0,2
  failedIndexes: "1"
  conditions:
  - {type: FailureTarget, status: "True", reason: FailedIndexes}
  - {type: Failed, status: "True", reason: FailedIndexes}`)
	r.noFinalizers(3)
}

func jobFailurePolicy(r *run) {
	const policy = `backoffLimit: 3, parallelism: 2, completions: 2, podFailurePolicy: {rules: [
    {action: FailJob, onExitCodes: {containerName: main, operator: In, values: [42]}},
    {action: Ignore, onPodConditions: [{type: DisruptionTarget}]}]}`
	r.job("work", policy, "")
	pods := r.counted(2, "pods", "", "status: {phase: Running}")
	// An evicted pod does not count.
	if err := r.evict(pods[0].GetName()); err != nil {
		r.Fatal(err)
	}
	r.gone("pods/" + pods[0].GetName())
	r.reaches("jobs/work", "status: {active: 2, ready: 2, failed: null}")
	r.patch("pods/"+pods[1].GetName(), "metadata: {annotations: {%s: '42'}}", hollow.Exit)
	// The one that was failed, and the one that had to go because of it.
	r.want("jobs/work", `
status:
  active: null
  succeeded: null
  failed: 2
  conditions:
  - {type: FailureTarget, status: "True", reason: PodFailurePolicy}
  - {type: Failed, status: "True", reason: PodFailurePolicy}`)
	r.count(1, "pods", "", "{metadata: {name: %s, finalizers: null}}", pods[1].GetName())
}

func jobSuccessPolicy(r *run) {
	r.job("work", `completions: 3, parallelism: 3, completionMode: Indexed, successPolicy: {rules: [{succeededIndexes: "0-1", succeededCount: 1}]}`, "")
	r.counted(3, "pods", "", "status: {phase: Running}")
	r.exit(1, 0)
	r.want("jobs/work", `
status:
  active: null
  succeeded: 1
  completedIndexes: "1"
  conditions:
  - {type: SuccessCriteriaMet, status: "True", reason: SuccessPolicy}
  - {type: Complete, status: "True", reason: SuccessPolicy}`)
	r.count(1, "pods", "", "{metadata: {finalizers: null}, status: {phase: Succeeded}}")
}

func jobSuspend(r *run) {
	r.job("work", "suspend: true, parallelism: 2, completions: 2", "")
	r.reaches("jobs/work", `
status: {active: null, startTime: null, conditions: [{type: Suspended, status: "True", reason: JobSuspended}]}`)
	r.counted(0, "pods", "", "{}")
	r.patch("jobs/work", "spec: {suspend: false}")
	r.reaches("jobs/work", `
status: {active: 2, ready: 2, startTime: "*", conditions: [{type: Suspended, status: "False", reason: JobResumed}]}`)
	r.patch("jobs/work", "spec: {suspend: true}")
	r.reaches("jobs/work", `
status: {active: null, startTime: null, failed: null, conditions: [{type: Suspended, status: "True", reason: JobSuspended}]}`)
	r.counted(0, "pods", "", "{}")
	// One after the other; the pods of one that has ended may go.
	r.patch("jobs/work", "spec: {parallelism: 1, suspend: false}")
	for done := 1; done <= 2; done++ {
		p := r.counted(1, "pods", "", "{metadata: {annotations: null}, status: {phase: Running}}")[0]
		r.patch("pods/"+p.GetName(), "metadata: {annotations: {%s: '0'}, labels: {done: 'yes'}}", hollow.Exit)
		r.reaches("jobs/work", "status: {succeeded: %d}", done)
		r.delete("pods/" + p.GetName())
		r.gone("pods/" + p.GetName())
	}
	r.want("jobs/work", `status: {active: null, succeeded: 2, conditions: [{type: Complete, status: "True"}]}`)
	r.count(0, "pods", "", "{}")
}

func jobDeadline(r *run) {
	r.job("work", "activeDeadlineSeconds: 3, parallelism: 2", "")
	r.want("jobs/work", `
status:
  active: null
  succeeded: null
  failed: 2
  terminating: 0
  conditions:
  - {type: FailureTarget, status: "True", reason: DeadlineExceeded}
  - {type: Failed, status: "True", reason: DeadlineExceeded}`)
	r.count(0, "pods", "", "{}")
	// Of another's Jobs nothing is touched.
	r.job("managed", "managedBy: parity.example/manager", "")
	r.want("jobs/managed", "status: {startTime: null, active: null}")
}

func jobTTL(r *run) {
	r.job("soon", "ttlSecondsAfterFinished: 3", "0")
	r.job("later", "ttlSecondsAfterFinished: 3600", "0")
	r.job("never", "parallelism: 1", "0")
	r.job("failing", "ttlSecondsAfterFinished: 0, backoffLimit: 0", "1")
	r.absent("jobs/failing")
	r.absent("jobs/soon")
	r.count(0, "pods", "job-name in (soon, failing)", "{}")
	r.reaches("jobs/later", "status: {conditions: [{type: Complete, status: 'True'}]}")
	r.patch("jobs/later", "spec: {ttlSecondsAfterFinished: 1}")
	r.absent("jobs/later")
	r.want("jobs/never", "{metadata: {deletionTimestamp: null}, status: {conditions: [{type: Complete, status: 'True'}]}}")
	r.count(1, "pods", "", "metadata: {labels: {job-name: never}}")
}

// A deleted Job lets its pods go, whatever it had still to count.
func jobFinalizers(r *run) {
	r.job("work", "parallelism: 3, completions: 6", "")
	r.reaches("jobs/work", "status: {active: 3}")
	p := r.list("pods", "")[0]
	// A pod that is deleted counts as failed and is replaced.
	r.delete("pods/" + p.GetName())
	r.gone("pods/" + p.GetName())
	r.reaches("jobs/work", "status: {active: 3, failed: 1}")
	r.delete("jobs/work", "Orphan")
	r.absent("jobs/work")
	r.count(3, "pods", "", "metadata: {finalizers: null, ownerReferences: null, deletionTimestamp: null}")
}

// cronJob creates a suspended CronJob that is due at a time of the day in Berlin.
func (r *run) cronJob(name string, due time.Time, spec string) *object {
	r.Helper()
	return r.apply(`
apiVersion: batch/v1
kind: CronJob
metadata: {name: %s}
spec:
  schedule: %d %d * * *
  timeZone: Europe/Berlin
  suspend: true
  jobTemplate: {metadata: {labels: {cron: %[1]s}}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: none}]}}}}
  %[4]s`,
		name, due.Minute(), due.Hour(), spec)
}

// overdue is a time of the day that has just passed, and one before that.
func (r *run) overdue() (due, before time.Time) {
	r.Helper()
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		r.Fatal(err)
	}
	due = time.Now().In(berlin).Truncate(time.Minute).Add(-5 * time.Minute)
	return due, due.Add(-12 * time.Hour)
}

func cronJobCatchUp(r *run) {
	due, before := r.overdue()
	cron := r.cronJob("late", due, "concurrencyPolicy: Allow")
	r.cronJob("too-late", due, "startingDeadlineSeconds: 60")
	for _, name := range []string{"late", "too-late"} {
		r.status("cronjobs/"+name, "{lastScheduleTime: '%s'}", before.UTC().Format(time.RFC3339))
		r.patch("cronjobs/"+name, "spec: {suspend: false}")
	}
	j := r.reaches(fmt.Sprintf("jobs/late-%d", due.Unix()/60), `
metadata:
  labels: {cron: late}
  annotations: {batch.kubernetes.io/cronjob-scheduled-timestamp: '%s'}
  ownerReferences: %s
status: {active: 1}`, due.Format(time.RFC3339), ownedBy(cron))
	r.reaches("cronjobs/late", `
status: {lastScheduleTime: '%s', lastSuccessfulTime: null, active: [{apiVersion: batch/v1, kind: Job, name: %s, namespace: %s, uid: %s}]}`,
		due.UTC().Format(time.RFC3339), j.GetName(), r.ns, j.GetUID())
	r.counted(0, "jobs", "cron=too-late", "{}")
	r.patch("cronjobs/too-late", "spec: {startingDeadlineSeconds: 3600}")
	r.count(1, "jobs", "cron=too-late", "metadata: {name: too-late-%d}", due.Unix()/60)

	p := r.counted(1, "pods", "job-name="+j.GetName(), "status: {phase: Running}")[0]
	r.patch("pods/"+p.GetName(), "metadata: {annotations: {%s: '0'}}", hollow.Exit)
	r.reaches("cronjobs/late", "status: {active: null, lastSuccessfulTime: '*'}")
	r.event("CronJob", "late", "SawCompletedJob", j.GetName())
	r.count(1, "jobs", "cron=late", "status: {succeeded: 1}")
}

func cronJobConcurrency(r *run) {
	due, before := r.overdue()
	for _, policy := range []string{"Forbid", "Replace"} {
		name := "cron-" + strings.ToLower(policy)
		cron := r.cronJob(name, due, "concurrencyPolicy: "+policy)
		// One that is still active from the time before.
		old := r.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: %s-old, labels: {cron: %[1]s}, ownerReferences: %s}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: none}]}}}`, name, ownedBy(cron))
		r.reaches("jobs/"+old.GetName(), "status: {active: 1}")
		r.status("cronjobs/"+name, "{lastScheduleTime: '%s', active: [{apiVersion: batch/v1, kind: Job, name: %s, namespace: %s, uid: %s}]}",
			before.UTC().Format(time.RFC3339), old.GetName(), r.ns, old.GetUID())
		r.patch("cronjobs/"+name, "spec: {suspend: false}")
	}
	r.event("CronJob", "cron-forbid", "JobAlreadyActive", "")
	r.count(1, "jobs", "cron=cron-forbid", "{metadata: {name: cron-forbid-old}, status: {active: 1}}")
	r.count(1, "jobs", "cron=cron-replace", "{metadata: {name: cron-replace-%d}, status: {active: 1}}", due.Unix()/60)
	r.want("cronjobs/cron-replace", "status: {lastScheduleTime: '%s', active: ['*']}", due.UTC().Format(time.RFC3339))
	r.want("cronjobs/cron-forbid", "status: {lastScheduleTime: '%s', active: ['*']}", before.UTC().Format(time.RFC3339))
}

func cronJobHistory(r *run) {
	due, _ := r.overdue()
	cron := r.cronJob("cron", due, "successfulJobsHistoryLimit: 1\n  failedJobsHistoryLimit: 0")
	for i, exit := range []string{"0", "0", "1"} {
		r.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: run-%d, ownerReferences: %s}
spec:
  backoffLimit: 0
  template: {metadata: {annotations: {%s: '%s'}}, spec: {restartPolicy: Never, containers: [{name: main, image: none}]}}`, i, ownedBy(cron), hollow.Exit, exit)
		if i < 2 {
			r.reaches(fmt.Sprintf("jobs/run-%d", i), "status: {conditions: [{type: Complete, status: 'True'}]}")
		}
		if i == 0 { // the next starts a second later
			r.eventually("the clock moves on", func(context.Context) error {
				if started := r.get("jobs/run-0").GetCreationTimestamp(); time.Since(started.Time) < 2*time.Second {
					return fmt.Errorf("%s since the first was made", time.Since(started.Time))
				}
				return nil
			})
		}
	}
	r.absent("jobs/run-2")
	r.absent("jobs/run-0")
	r.count(1, "jobs", "", "metadata: {name: run-1}")
	r.count(1, "pods", "", "metadata: {labels: {job-name: run-1}}")
}
