using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>
/// What the innermost handler of a channel has thrown. Other exceptions of the same types come from other clients, which a handler or a
/// marshaller of the user's uses, perhaps once the server has answered.
/// </summary>
internal static class TransportExceptions
{
    private static readonly ConditionalWeakTable<Exception, Type> Thrown = [];

    /// <summary>For the filter of a catch clause, which is false: nothing is caught.</summary>
    public static bool Note(Exception exception)
    {
        Thrown.AddOrUpdate(exception, exception.GetType());
        return false;
    }

    /// <summary>Whether the exception is one of those, or was thrown because of one.</summary>
    public static bool IsOne(Exception? exception) =>
        exception is not null && (Thrown.TryGetValue(exception, out _) || IsOne(exception.InnerException));
}
