package aws

import (
	"encoding/json"
	"net/http"
	"strings"
)

// servePath answers the pages beside the AWS APIs: health and the plain URLs of
// services. It reports whether there was one.
func (m *Mux) servePath(w http.ResponseWriter, r *http.Request, id string, mode AuthMode) bool {
	switch r.URL.Path {
	case "/_localstack/health", "/_lambdad/health":
		services := map[string]string{}
		for name := range m.services {
			services[name] = "running"
		}
		writePage(w, r, http.StatusOK, map[string]any{
			"services": services, "edition": "lambdad", "version": m.opts.Version,
		})
		return true
	case "/_lambdad/ready":
		if err := m.opts.Ready(); err != nil {
			writePage(w, r, http.StatusServiceUnavailable, map[string]any{"ready": false, "reason": err.Error()})
		} else {
			writePage(w, r, http.StatusOK, map[string]any{"ready": true})
		}
		return true
	}
	for prefix, p := range m.paths {
		if strings.HasPrefix(r.URL.Path, prefix) {
			q := &Request{Request: r, Service: p.svc.Name(), Region: m.opts.Region, RequestID: id, authority: m.authority(p.svc, mode)}
			q.failed = p.handler(w, q)
			if m.opts.Access != nil && (q.Operation != "" || q.failed != nil) {
				m.tell(q)
			}
			return true
		}
	}
	return false
}

func writePage(w http.ResponseWriter, r *http.Request, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write(append(body, '\n'))
	}
}
