package controllers

var horizontalPodAutoscaler = Declaration{
	Name:      "horizontal-pod-autoscaler-controller",
	Identity:  serviceAccount + "horizontal-pod-autoscaler",
	Resources: []string{"horizontalpodautoscalers.autoscaling", "pods"},
	// Pods it looks up when it computes.
	Wait: map[string]Events{"pods": Any},
	// It computes each autoscaler anew each 15 seconds; and as often it looks, also
	// without any, whether there are new versions of the metrics APIs.
	TimersFor:   []string{"horizontalpodautoscalers.autoscaling"},
	MemoryLimit: memoryLimit,
	RunLimit:    runLimit,
}
