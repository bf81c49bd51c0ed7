package server

import (
	"context"
	"fmt"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	rbac "k8s.io/client-go/applyconfigurations/rbac/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/dormouse-k8s/dormouse/server/apiserver/inprocess"
)

// Grant lets a controller of a Plane read resources that upstream's role for it does not cover, because
// upstream reads them through the controller manager's own informers.
type Grant struct {
	// Controller is the upstream name, User the identity.
	Controller, User string
	// Resources are "resource" or "resource.group".
	Resources []string
}

// fieldManager is who we are in the managed fields of what we apply.
const fieldManager = "dormouse"

// applyGrants makes a ClusterRole and a ClusterRoleBinding of each grant. What is there already and the
// same is not written again.
func (s *server) applyGrants(ctx context.Context, grants []Grant) error {
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: inprocess.Host, Transport: s.api.Transport(inprocess.User("system:admin", user.SystemPrivilegedGroup)), QPS: -1, UserAgent: fieldManager,
	})
	if err != nil {
		return fmt.Errorf("building a client for the Plane's roles: %w", err)
	}
	options := metav1.ApplyOptions{FieldManager: fieldManager, Force: true}
	for _, g := range grants {
		name := "system:dormouse:" + g.Controller
		role := rbac.ClusterRole(name).WithRules()
		for _, r := range g.Resources {
			gr := schema.ParseGroupResource(strings.TrimSpace(r))
			role.WithRules(rbac.PolicyRule().WithVerbs("get", "list", "watch").WithAPIGroups(gr.Group).WithResources(gr.Resource))
		}
		if _, err := client.RbacV1().ClusterRoles().Apply(ctx, role, options); err != nil {
			return fmt.Errorf("granting %s what it reads: %w", g.Controller, err)
		}
		binding := rbac.ClusterRoleBinding(name).
			WithRoleRef(rbac.RoleRef().WithAPIGroup(rbacv1.GroupName).WithKind("ClusterRole").WithName(name)).
			WithSubjects(rbac.Subject().WithAPIGroup(rbacv1.GroupName).WithKind(rbacv1.UserKind).WithName(g.User))
		if _, err := client.RbacV1().ClusterRoleBindings().Apply(ctx, binding, options); err != nil {
			return fmt.Errorf("granting %s what it reads: %w", g.Controller, err)
		}
	}
	return nil
}
