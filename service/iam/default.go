package iam

import (
	"context"
	"errors"
	"fmt"

	"github.com/lambdad/lambdad/store"
)

// DefaultRole is the name of a role that every server has at its first start, so
// that a function can be created in one command: Lambda may assume it, it may write
// logs and invoke functions. It may be changed and deleted as any other.
const DefaultRole = "any"

// defaultPolicies are the managed policies of DefaultRole.
func defaultPolicies() []string {
	return []string{servicePolicies + "AWSLambdaBasicExecutionRole", servicePolicies + "AWSLambdaRole"}
}

const servicePolicies = "arn:aws:iam::aws:policy/service-role/"

// begun is the key of the record that says that Begin was done in an account.
func begun(account string) string { return account + "." + region + ".iam-begun" }

// Begin does what is done once in the life of a server: it makes DefaultRole in the
// account and, for functions that were created before there were roles, the
// roles they name, which Lambda may assume and which may write logs.
func (r *Registry) Begin(ctx context.Context, account string, roles []string) error {
	_, err := r.store.Get(ctx, begun(account))
	if err == nil {
		return nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("iam: reading whether roles were made: %w", err)
	}
	if _, err := r.ensureRole(ctx, "arn:aws:iam::"+account+":role/"+DefaultRole,
		"Made by lambdad at its first start: may write logs and invoke functions", defaultPolicies()); err != nil {
		return err
	}
	for _, arn := range roles {
		if _, err := r.ensureRole(ctx, arn, "Made by lambdad for a function that named it", defaultPolicies()[:1]); err != nil {
			return err
		}
	}
	if _, err := r.store.Put(ctx, begun(account), []byte(`{}`)); err != nil {
		return fmt.Errorf("iam: noting that roles were made: %w", err)
	}
	return nil
}
