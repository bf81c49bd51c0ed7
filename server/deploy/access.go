package deploy

import (
	"context"
	"fmt"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
)

// accessPoll is how often the authorizer is asked; a question costs a fraction of a millisecond.
const accessPoll = 5 * time.Millisecond

// awaitAccess waits until the API server's authorizer, which learns of roles through watches, knows those
// among objects that bind a service account to a ClusterRole among objects.
func awaitAccess(ctx context.Context, reviews authorizationclient.SubjectAccessReviewInterface, objects []*unstructured.Unstructured) error {
	questions, err := accessQuestions(objects)
	if err != nil {
		return err
	}
	for _, q := range questions {
		err := wait.PollUntilContextCancel(ctx, accessPoll, true, func(ctx context.Context) (bool, error) {
			answer, err := reviews.Create(ctx, &authorizationv1.SubjectAccessReview{Spec: q}, metav1.CreateOptions{})
			return err == nil && answer.Status.Allowed, err
		})
		if err != nil {
			return fmt.Errorf("waiting until %s may %s %s: %w", q.User, q.ResourceAttributes.Verb, q.ResourceAttributes.Resource, err)
		}
	}
	return nil
}

// accessQuestions returns one question for each rule that is granted to a service account.
func accessQuestions(objects []*unstructured.Unstructured) ([]authorizationv1.SubjectAccessReviewSpec, error) {
	roles := map[string]rbacv1.ClusterRole{}
	var bindings []rbacv1.ClusterRoleBinding
	for _, o := range objects {
		var err error
		switch o.GroupVersionKind() {
		case rbacv1.SchemeGroupVersion.WithKind("ClusterRole"):
			var r rbacv1.ClusterRole
			err = runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &r)
			roles[r.Name] = r
		case rbacv1.SchemeGroupVersion.WithKind("ClusterRoleBinding"):
			var b rbacv1.ClusterRoleBinding
			err = runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &b)
			bindings = append(bindings, b)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", describe(o), err)
		}
	}
	var questions []authorizationv1.SubjectAccessReviewSpec
	for _, b := range bindings {
		for _, s := range b.Subjects {
			for _, rule := range roles[b.RoleRef.Name].Rules {
				if s.Kind != rbacv1.ServiceAccountKind || len(rule.Verbs) == 0 || len(rule.APIGroups) == 0 || len(rule.Resources) == 0 {
					continue
				}
				questions = append(questions, authorizationv1.SubjectAccessReviewSpec{
					User:               serviceaccount.MakeUsername(s.Namespace, s.Name),
					ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: rule.Verbs[0], Group: rule.APIGroups[0], Resource: rule.Resources[0]},
				})
			}
		}
	}
	return questions, nil
}
