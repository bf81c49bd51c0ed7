package app

import (
	"context"
	"time"

	"k8s.io/controller-manager/pkg/clientbuilder"
)

// ServiceAccountTokenController describes the controller that acts as the
// controller manager itself.
func ServiceAccountTokenController(root clientbuilder.ControllerClientBuilder) *ControllerDescriptor {
	return newServiceAccountTokenControllerDescriptor(root)
}

// SyncKinds runs sync until ctx is done, and anew when the kinds of resources may
// have changed. sync looks for changes at once and then periodically. The guest
// program sets it.
var SyncKinds func(ctx context.Context, sync func(ctx context.Context, period time.Duration))
