package parity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

var certificates = []trial{
	{"certificate-client", "certificatesigningrequest-signing-controller", clientCertificate},
	{"certificate-kubelet", "certificatesigningrequest-approving-controller certificatesigningrequest-signing-controller", kubeletCertificate},
	{"certificate-refused", "certificatesigningrequest-signing-controller", refusedCertificate},
	{"trust-bundle", "kube-apiserver-serving-clustertrustbundle-publisher-controller", trustBundle},
}

// request asks for a certificate and returns its key.
func (r *run) request(as rest.ImpersonationConfig, name, signer string, subject pkix.Name, dns []string, usages ...string) crypto.Signer {
	r.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.Fatal(err)
	}
	template := &x509.CertificateRequest{Subject: subject, DNSNames: dns}
	if len(dns) > 0 {
		template.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		r.Fatal(err)
	}
	spec := certificatesv1.CertificateSigningRequestSpec{SignerName: signer, ExpirationSeconds: new(int32),
		Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}
	*spec.ExpirationSeconds = 7200
	for _, u := range usages {
		spec.Usages = append(spec.Usages, certificatesv1.KeyUsage(u))
	}
	client, err := r.as(as)
	if err != nil {
		r.Fatal(err)
	}
	csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	if _, err := client.CertificatesV1().CertificateSigningRequests().Create(r.Context(), csr, metav1.CreateOptions{}); err != nil {
		r.Fatal(err)
	}
	return key
}

// decide approves or denies a request.
func (r *run) decide(name string, decision certificatesv1.RequestConditionType) {
	r.Helper()
	r.eventually("decide", func(ctx context.Context) error {
		requests := r.CertificatesV1().CertificateSigningRequests()
		csr, err := requests.Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: decision, Status: corev1.ConditionTrue, Reason: "Parity"})
			_, err = requests.UpdateApproval(ctx, name, csr, metav1.UpdateOptions{})
		}
		return err
	})
}

// issued waits for a request's certificate and checks what all have in common.
func (r *run) issued(name string, usage x509.ExtKeyUsage) (*x509.Certificate, []byte) {
	r.Helper()
	csr := r.want("certificatesigningrequests/"+name, "status: {certificate: '*', conditions: [{type: Approved, status: 'True'}]}")
	encoded, _ := field(csr, "status", "certificate").(string)
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		r.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		r.Fatalf("no certificate: %s", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		r.Fatal(err)
	}
	if !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{usage}) || cert.IsCA {
		r.Errorf("the certificate is for %v (CA: %v)", cert.ExtKeyUsage, cert.IsCA)
	}
	if left := time.Until(cert.NotAfter); left < time.Hour || left > 2*time.Hour {
		r.Errorf("the certificate is valid for %s", left)
	}
	return cert, text
}

// identity asks the API server who a certificate makes one.
func (r *run) identity(certificate []byte, key crypto.Signer) (string, error) {
	r.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		r.Fatal(err)
	}
	config := rest.AnonymousClientConfig(r.Config)
	config.CertData, config.KeyData = certificate, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return self(r.Context(), config)
}

func clientCertificate(r *run) {
	const signer = "kubernetes.io/kube-apiserver-client"
	subject := pkix.Name{CommonName: "parity-user", Organization: []string{"parity-group"}}
	key := r.request(rest.ImpersonationConfig{}, "parity-client", signer, subject, nil, "digital signature", "client auth")
	r.reaches("certificatesigningrequests/parity-client", "status: {certificate: null, conditions: null}")
	r.decide("parity-client", certificatesv1.CertificateApproved)
	cert, text := r.issued("parity-client", x509.ExtKeyUsageClientAuth)
	if cert.Subject.CommonName != "parity-user" || !slices.Equal(cert.Subject.Organization, []string{"parity-group"}) {
		r.Errorf("the certificate is of %s", cert.Subject)
	}
	if user, err := r.identity(text, key); err != nil || user != "parity-user" {
		r.Errorf("it makes one %q (%v)", user, err)
	}
}

// A node's request for its own client certificate is approved, if RBAC says that
// it may ask; the one for its serving certificate is for people to approve.
func kubeletCertificate(r *run) {
	const node = "parity-kubelet"
	r.apply(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: parity-renewal}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient"}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "system:node:%s"}]`, node)
	kubelet := rest.ImpersonationConfig{UserName: "system:node:" + node, Groups: []string{"system:nodes", "system:authenticated"}}
	subject := pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}
	key := r.request(kubelet, "parity-node", "kubernetes.io/kube-apiserver-client-kubelet", subject, nil, "digital signature", "client auth")
	_, text := r.issued("parity-node", x509.ExtKeyUsageClientAuth)
	if user, err := r.identity(text, key); err != nil || user != "system:node:"+node {
		r.Errorf("it makes one %q (%v)", user, err)
	}
	r.want("certificatesigningrequests/parity-node", "status: {conditions: [{type: Approved, reason: AutoApproved, message: Auto approving self kubelet client certificate after SubjectAccessReview.}]}")

	r.request(kubelet, "parity-serving", "kubernetes.io/kubelet-serving", subject, []string{node}, "digital signature", "server auth")
	// Another's certificate it does not get.
	other := rest.ImpersonationConfig{UserName: "system:node:parity-other", Groups: []string{"system:nodes", "system:authenticated"}}
	otherSubject := pkix.Name{CommonName: "system:node:parity-other", Organization: []string{"system:nodes"}}
	r.request(other, "parity-other", "kubernetes.io/kube-apiserver-client-kubelet", otherSubject, nil, "digital signature", "client auth")
	r.reaches("certificatesigningrequests/parity-serving", "status: {certificate: null, conditions: null}")
	r.decide("parity-serving", certificatesv1.CertificateApproved)
	cert, _ := r.issued("parity-serving", x509.ExtKeyUsageServerAuth)
	if !slices.Equal(cert.DNSNames, []string{node}) || len(cert.IPAddresses) != 1 {
		r.Errorf("the certificate is for %v %v", cert.DNSNames, cert.IPAddresses)
	}
	r.want("certificatesigningrequests/parity-other", "status: {certificate: null, conditions: null}")
}

func refusedCertificate(r *run) {
	const signer = "kubernetes.io/kube-apiserver-client"
	subject := pkix.Name{CommonName: "parity-refused"}
	r.request(rest.ImpersonationConfig{}, "parity-denied", signer, subject, nil, "client auth")
	r.decide("parity-denied", certificatesv1.CertificateDenied)
	// A client's signer makes no servers.
	r.request(rest.ImpersonationConfig{}, "parity-wrong-usage", signer, subject, nil, "server auth")
	r.decide("parity-wrong-usage", certificatesv1.CertificateApproved)
	r.want("certificatesigningrequests/parity-wrong-usage", "status: {certificate: null, conditions: [{type: Failed, status: 'True', reason: SignerValidationFailure}]}")
	// Other signers' requests are theirs.
	r.request(rest.ImpersonationConfig{}, "parity-foreign", "parity.example/signer", subject, nil, "client auth")
	r.decide("parity-foreign", certificatesv1.CertificateApproved)
	r.request(rest.ImpersonationConfig{}, "parity-last", signer, subject, nil, "client auth")
	r.decide("parity-last", certificatesv1.CertificateApproved)
	r.issued("parity-last", x509.ExtKeyUsageClientAuth)
	r.want("certificatesigningrequests/parity-denied", "status: {certificate: null, conditions: [{type: Denied}]}")
	r.want("certificatesigningrequests/parity-foreign", "status: {certificate: null, conditions: [{type: Approved}]}")
}

func trustBundle(r *run) {
	const signer = "kubernetes.io/kube-apiserver-serving"
	is := func() *object {
		r.Helper()
		all := r.list("clustertrustbundles", "")
		for i := range all {
			if field(&all[i], "spec", "signerName") == signer {
				return &all[i]
			}
		}
		return nil
	}
	var bundle *object
	r.eventually("the bundle", func(context.Context) error {
		if bundle = is(); bundle == nil {
			return fmt.Errorf("there is none of %s", signer)
		}
		return nil
	})
	want, _ := field(bundle, "spec", "trustBundle").(string)
	block, _ := pem.Decode([]byte(want))
	if block == nil {
		r.Fatalf("it has no certificate: %s", show(bundle))
	}
	ref := "clustertrustbundles/" + bundle.GetName()
	r.delete(ref)
	r.eventually("another bundle", func(context.Context) error {
		if again := is(); again == nil || again.GetUID() == bundle.GetUID() || field(again, "spec", "trustBundle") != want {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	r.want(ref, "metadata: {deletionTimestamp: null}")
}
