// Package sts is the API of AWS STS, as far as lambdad has it: GetCallerIdentity,
// which clients call to find out account and validity of their keys. The other
// operations of the model are answered NotImplemented.
package sts

import "github.com/lambdad/lambdad/aws"

// A Service is the STS API; it implements aws.Service.
type Service struct{ aws.RPC }

// New returns the service.
func New() *Service {
	s := &Service{}
	s.RPC = aws.NewRPC(&api, map[string]aws.Handler{
		"GetCallerIdentity": aws.Operation(s.getCallerIdentity),
	})
	return s
}

func (s *Service) getCallerIdentity(r *aws.Request, _ *GetCallerIdentityRequest) (*GetCallerIdentityResponse, error) {
	id := &r.Identity
	return &GetCallerIdentityResponse{UserId: &id.UserID, Account: &id.Account, Arn: &id.ARN}, nil
}
