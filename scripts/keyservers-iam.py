"""Makes the users of a moto server, then has it check who may do what. Prints what the tests shall know; for scripts/keyservers."""

import json
import shlex
import sys
import urllib.request
import ssl

import boto3

url, authority = sys.argv[1:]


def client(service):
    return boto3.client(
        service,
        endpoint_url=url,
        verify=authority,
        region_name="eu-west-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
    )


iam = client("iam")


def policy(*actions, **more):
    statement = {"Effect": "Allow", "Action": actions, **more}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def tell(variable, value):
    print(f"export HUSHFS_TEST_MOTO_AUTH_{variable}={shlex.quote(value)}")


def user(name, *actions):
    made = iam.create_user(UserName=name)["User"]
    iam.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=policy(*actions, Resource="*"))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    tell(f"{name.upper()}_ID", key["AccessKeyId"])
    tell(f"{name.upper()}_SECRET", key["SecretAccessKey"])
    return made["Arn"]


use = ["kms:GenerateDataKey", "kms:Decrypt", "kms:DescribeKey", "kms:CreateKey"]
user("user", *use)
stranger = user("stranger", "sts:AssumeRole")
role = iam.create_role(RoleName="user", AssumeRolePolicyDocument=policy("sts:AssumeRole", Principal={"AWS": stranger}))
iam.put_role_policy(RoleName="user", PolicyName="all", PolicyDocument=policy(*use, Resource="*"))
tell("ROLE", role["Role"]["Arn"])
tell("KEY", client("kms").create_key()["KeyMetadata"]["Arn"])

# From here on no call is free.
enforce = urllib.request.Request(f"{url}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"})
urllib.request.urlopen(enforce, context=ssl.create_default_context(cafile=authority)).read()
