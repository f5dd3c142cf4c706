using Grpc.Core;

namespace PoolingInvoker.Demo.Web;

/// <summary>How a call that failed looks over HTTP: a status that says the same, and a problem as the body (RFC 9457).</summary>
internal static class GrpcProblems
{
    public static int StatusOf(Exception exception) => exception switch
    {
        RpcException rpc => StatusOf(rpc.StatusCode),
        BadHttpRequestException bad => bad.StatusCode,
        _ => StatusCodes.Status500InternalServerError,
    };

    public static void Describe(ProblemDetailsContext context)
    {
        if (context.Exception is RpcException rpc)
        {
            context.ProblemDetails.Detail = rpc.Status.Detail is "" ? null : rpc.Status.Detail;
            context.ProblemDetails.Extensions["grpcStatus"] = rpc.StatusCode.ToString();
        }
    }

    private static int StatusOf(StatusCode code) => code switch
    {
        StatusCode.InvalidArgument or StatusCode.OutOfRange or StatusCode.FailedPrecondition => StatusCodes.Status400BadRequest,
        StatusCode.Unauthenticated => StatusCodes.Status401Unauthorized,
        StatusCode.PermissionDenied => StatusCodes.Status403Forbidden,
        StatusCode.NotFound => StatusCodes.Status404NotFound,
        StatusCode.AlreadyExists or StatusCode.Aborted => StatusCodes.Status409Conflict,
        StatusCode.Cancelled => StatusCodes.Status499ClientClosedRequest,
        StatusCode.Unimplemented => StatusCodes.Status501NotImplemented,
        StatusCode.Unavailable or StatusCode.ResourceExhausted => StatusCodes.Status503ServiceUnavailable,
        StatusCode.DeadlineExceeded => StatusCodes.Status504GatewayTimeout,
        _ => StatusCodes.Status502BadGateway,
    };
}
