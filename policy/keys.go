package policy

import "strings"

// A KeySet is Keys as a map from names in lower case to values, above the keys that
// every service of AWS has. A name that ends with /* says that all keys of that
// family, such as aws:requesttag/, are known.
type KeySet map[string][]string

// Values implements Keys.
func (k KeySet) Values(key string) (values []string, known bool) {
	if v, ok := k[key]; ok {
		return v, true
	}
	if i := strings.IndexByte(key, '/'); i > 0 {
		if _, ok := k[key[:i]+"/*"]; ok {
			return nil, true
		}
	}
	return nil, KnownKey(key)
}

// absent are the global condition keys that AWS defines and that a request here
// never has, because what they speak of (networks, organisations, federation,
// devices) does not exist here, or has only where the caller's Keys say so.
var absent = func() map[string]bool {
	m := map[string]bool{}
	for _, k := range strings.Fields(`
		aws:AssumedRoot aws:CalledVia aws:CalledViaFirst aws:CalledViaLast aws:ChatbotSourceArn
		aws:CurrentTime aws:Ec2InstanceSourcePrivateIPv4 aws:Ec2InstanceSourceVpc aws:EpochTime
		aws:FederatedProvider aws:MultiFactorAuthAge aws:MultiFactorAuthPresent aws:PrincipalAccount
		aws:PrincipalArn aws:PrincipalIsAWSService aws:PrincipalOrgID aws:PrincipalOrgPaths
		aws:PrincipalServiceName aws:PrincipalServiceNamesList aws:PrincipalType aws:Referer
		aws:RequestedRegion aws:ResourceAccount aws:ResourceOrgID aws:ResourceOrgPaths
		aws:SecureTransport aws:SourceAccount aws:SourceArn aws:SourceIdentity aws:SourceIp
		aws:SourceOrgID aws:SourceOrgPaths aws:SourceOwner aws:SourceVpc aws:SourceVpcArn aws:SourceVpce
		aws:TokenIssueTime aws:UserAgent aws:ViaAWSService aws:VpceAccount aws:VpceOrgID
		aws:VpceOrgPaths aws:VpcSourceIp aws:userid aws:username
		sts:SourceIdentity sts:ExternalId sts:RoleSessionName sts:TransitiveTagKeys`) {
		m[strings.ToLower(k)] = true
	}
	return m
}()

// KnownKey reports whether a key, in lower case, is one of AWS's global keys whose
// absence is understood. Tags of principals and sessions are; tags of resources and
// requests are known only where a service says what they are.
func KnownKey(key string) bool {
	return absent[key] || strings.HasPrefix(key, "aws:principaltag/")
}
