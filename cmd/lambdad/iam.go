package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
	"github.com/lambdad/lambdad/datadir"
	"github.com/lambdad/lambdad/policy"
	iamservice "github.com/lambdad/lambdad/service/iam"
	"github.com/lambdad/lambdad/trail"
)

// keyFlags are condition keys, as key=value.
type keyFlags []string

func (k *keyFlags) String() string { return strings.Join(*k, " ") }

func (k *keyFlags) Set(s string) error {
	if name, _, ok := strings.Cut(s, "="); !ok || !strings.Contains(name, ":") {
		return fmt.Errorf("%q is not of the form aws:SourceIp=203.0.113.7", s)
	}
	*k = append(*k, s)
	return nil
}

// iamCommand explains what policies say. Everything else about IAM is asked of the
// endpoint, by any AWS client.
func iamCommand(ctx context.Context, std stdio, args []string) error {
	fs := newFlags(std, "iam")
	dataDir := fs.String("data-dir", defaultDataDir(), "`directory` of the server")
	principal := fs.String("principal", "", "`ARN` of a user, a role, a role's session, or an account's root")
	action := fs.String("action", "", "`name` such as lambda:InvokeFunction")
	resource := fs.String("resource", "*", "`ARN` of what it is done to")
	request := fs.String("request", "", "`id` of a request in the audit log, instead of the three above")
	output := fs.String("output", "table", "`form`: table or json")
	var keys keyFlags
	fs.Var(&keys, "key", "condition `key=value`; may be given several times")
	rest, err := parse(fs, args, 1, 1)
	if err != nil {
		return err
	}
	if rest[0] != "explain" {
		fmt.Fprintf(std.err, "lambdad iam: %q: the only subcommand is explain; users, roles and policies are made with any AWS client, such as aws iam create-role\n", rest[0])
		return errUsage
	}
	if *output != "table" && *output != "json" {
		fmt.Fprintf(std.err, "lambdad iam: --output %q: it must be table or json\n", *output)
		return errUsage
	}
	if *request != "" {
		e, err := findEvent(ctx, *dataDir, *request)
		if err != nil {
			return err
		}
		*principal, *action = e.UserIdentity.ARN, e.Extra.Action
		if len(e.Resources) > 0 {
			*resource = e.Resources[0].ARN
		}
		if e.SourceIP != "environment" {
			keys = append(keys, "aws:SourceIp="+e.SourceIP)
		}
	}
	if *principal == "" || *action == "" {
		fmt.Fprintln(std.err, "lambdad iam explain: give --principal and --action (and --resource), or --request")
		return errUsage
	}
	query := url.Values{"principal": {*principal}, "action": {*action}, "resource": {*resource}, "key": keys}
	var x struct {
		iamservice.Explanation
		Error string `json:"error"`
	}
	if err := askControl(ctx, *dataDir, "/iam/explain?"+query.Encode(), &x); err != nil {
		return err
	}
	if x.Error != "" {
		return fmt.Errorf("%s", x.Error)
	}
	if *output == "json" {
		enc := json.NewEncoder(std.out)
		enc.SetIndent("", "  ")
		return enc.Encode(&x.Explanation)
	}
	answer := "denied"
	if x.Allowed {
		answer = "allowed"
	}
	w := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\t%s\n", answer, x.Because)
	fmt.Fprintf(w, "principal\t%s\naction\t%s\nresource\t%s\n", x.Principal, x.Action, x.Resource)
	if x.Statement > 0 {
		fmt.Fprintf(w, "policy\t%s (%s)\nstatement\t%d%s\n", x.Document, x.DecidedBy, x.Statement, sidText(x.SID))
	}
	for i, name := range x.Policies {
		label := ""
		if i == 0 {
			label = "looked at"
		}
		fmt.Fprintf(w, "%s\t%s\n", label, name)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if x.Text != "" {
		fmt.Fprintf(std.out, "\n%s\n", x.Text)
	}
	return nil
}

func sidText(sid string) string {
	if sid == "" {
		return ""
	}
	return ", Sid " + sid
}

// findEvent looks for a request in the audit log.
func findEvent(ctx context.Context, dataDir, id string) (found *trail.Event, err error) {
	err = trail.Read(ctx, datadir.AuditDir(dataDir), false, func(_ []byte, e *trail.Event) bool {
		if e.RequestID == id {
			found = e
		}
		return found == nil
	})
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("the audit log of %s has no request %s; lambdad audit lists what it has", dataDir, id)
	}
	if found.UserIdentity.ARN == "" {
		return nil, fmt.Errorf("request %s was not authenticated, so no policy was asked: %s %s", id, found.ErrorCode, found.ErrorMessage)
	}
	return found, nil
}

// explainPolicies answers what iamCommand asks. The keepers are of the policies on
// resources, by the service in their ARN.
func explainPolicies(identities *iamservice.Registry, keepers map[string]aws.PolicyKeeper) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		question := iamservice.Question{
			Principal: q.Get("principal"), Action: q.Get("action"), Resource: q.Get("resource"), Keys: policy.KeySet{},
		}
		if parts := strings.SplitN(question.Resource, ":", 4); len(parts) == 4 && keepers[parts[2]] != nil {
			question.Policy = keepers[parts[2]].ResourcePolicy(nil, question.Resource)
		}
		for _, kv := range q["key"] {
			name, value, _ := strings.Cut(kv, "=")
			name = strings.ToLower(name)
			question.Keys[name] = append(question.Keys[name], value)
		}
		w.Header().Set("Content-Type", "application/json")
		x, err := identities.Explain(question)
		if err != nil {
			text := err.Error()
			if e, ok := err.(*lambdad.Error); ok {
				text = e.Message
			}
			_ = json.NewEncoder(w).Encode(map[string]string{"error": text}) // the reader left
			return
		}
		_ = json.NewEncoder(w).Encode(x) // the reader left
	}
}
